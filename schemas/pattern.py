"""How units are named in bulk: a glob, or `re:` and a regular expression, over whole names."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, StringConstraints

REGEX = "re:"


def check_pattern(pattern: str) -> str:
    """The pattern, if it can be compiled; ValueError otherwise."""
    if pattern.startswith(REGEX):
        try:
            re.compile(pattern.removeprefix(REGEX))
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
    return pattern


Pattern = Annotated[str, StringConstraints(min_length=1), AfterValidator(check_pattern)]
