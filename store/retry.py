"""Another try, after a pause, for what networks do; a plain message for what they will keep doing."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from schemas.errors import InputError
from store.errors import refusal

T = TypeVar("T")

TRIES = 10
"""Half of all calls failing at random then stops one operation in a thousand."""

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0
"""Seconds; each pause doubles the one before, with jitter: under 10 s until a dead store is reported."""

_NETWORK = {
    "aiobotocore",
    "aiohttp",
    "botocore",
    "urllib3",
    "requests",
    "google",
    "gcsfs",
    "azure",
    "adlfs",
    "paramiko",
}
_SETTINGS = ("Credential", "ParamValidation", "ProfileNotFound", "NoRegion", "InvalidEndpoint")


def attempt(operation: Callable[[], T], where: str, tries: int = TRIES) -> T:
    """Call until it succeeds. FileNotFoundError and FileExistsError are answers, not failures, and pass at once.

    Raises InputError for full, closed or misconfigured stores at once, and for one that keeps failing in the end.
    """
    last: Exception | None = None
    for number in range(tries):
        if number:
            time.sleep(min(FIRST_PAUSE * 2 ** (number - 1), LONGEST_PAUSE) * random.uniform(0.5, 1.0))
        try:
            return operation()
        except (FileNotFoundError, FileExistsError):
            raise
        except Exception as error:
            _raise_if_final(error, where)
            last = error
    raise InputError(
        "The store does not answer",
        where=where,
        got=f"{type(last).__name__}: {last}",
        wanted=f"success in {tries} tries",
        fix="check the address, the network and the credentials",
    ) from last


def _raise_if_final(error: Exception, where: str) -> None:
    """Let go of errors that another try cannot mend."""
    if isinstance(error, OSError):
        told = refusal(error, where)
        if told is not None:
            raise told from error
        return
    if type(error).__module__.split(".")[0] not in _NETWORK:
        raise error
    if any(part in type(error).__name__ for part in _SETTINGS):
        raise InputError("The store's settings are wrong", where=where, got=error, fix="set its credentials") from error
