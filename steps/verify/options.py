"""Options of verifying that the command line and `python -m steps.verify` share. Torch-free."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from typing import get_args

from schemas.calibrate import LEAST_LENGTH
from schemas.errors import InputError
from schemas.verify import Loading

LOADINGS: tuple[Loading, ...] = get_args(Loading)
LOAD_HELP = "how: whole, or block by block in little memory, without speed (auto: whole up to a billion weights)"


def split(names: str) -> tuple[str, ...]:
    """What stands between commas."""
    return tuple(name.strip() for name in names.split(",") if name.strip())


def check_options(options: argparse.Namespace) -> None:
    """InputError for options that do not go together or need what is not installed, before anything is read."""
    if (options.model is None) != (options.text is None) and not (options.tasks and options.text is None):
        raise InputError(
            "measuring takes a model and a text", wanted="--model and --text, or neither; --model alone with --tasks"
        )
    for flag, value, least in (("--length", options.length, LEAST_LENGTH), ("--windows", options.windows, 1)):
        if value < least:
            raise InputError("too little to measure on", where=flag, got=value, wanted=f"{least} or more")
    if options.limit is not None and (options.limit < 1 or not options.tasks):
        raise InputError(
            "a limit is of samples per task", where="--limit", got=options.limit, wanted="1 or more, with --tasks"
        )
    if options.tasks:
        if options.engine != "transformers":
            raise InputError(
                "tasks run in transformers", where="--engine", got=options.engine, fix="leave --engine out"
            )
        check_installed()


def check_installed() -> None:
    """InputError without lm-eval, which is an extra of its own."""
    if find_spec("lm_eval") is None:
        raise InputError(
            "lm-eval is not installed",
            where="--tasks",
            wanted="the extra `lm-eval`",
            fix="in Bitsmith's folder: .venv/bin/uv pip install --python .venv/bin/python -c constraints.txt "
            "-e '.[lm-eval]'",
        )
