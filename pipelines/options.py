"""Options of the command line that take a number: one out of range is an InputError."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

from schemas.errors import InputError


def number(
    command: argparse.ArgumentParser, flag: str, least: int, *, help: str, most: int | None = None, **rest: Any
) -> None:
    """Add an option that takes a whole number from `least` to `most`."""
    command.add_argument(flag, metavar="N", type=_whole(flag, least, most), help=help, **rest)


def seconds(command: argparse.ArgumentParser, flag: str, *, help: str, default: float) -> None:
    """Add an option that takes a duration."""
    command.add_argument(flag, metavar="S", type=_seconds(flag), help=help, default=default)


def _whole(flag: str, least: int, most: int | None) -> Callable[[str], int]:
    wanted = f"a whole number, {least} or more" if most is None else f"a whole number, {least} to {most}"

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError as error:
            raise _refused(flag, text, wanted) from error
        if value < least or (most is not None and value > most):
            raise _refused(flag, text, wanted)
        return value

    return read


def _seconds(flag: str) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError as error:
            raise _refused(flag, text, "seconds") from error
        if not (math.isfinite(value) and value > 0):
            raise _refused(flag, text, "seconds, more than 0")
        return value

    return read


def _refused(flag: str, got: str, wanted: str) -> InputError:
    return InputError("this option takes another number", where=flag, got=got, wanted=wanted)
