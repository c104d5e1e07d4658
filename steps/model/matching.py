"""Units by pattern: a glob, or `re:` and a regular expression, over whole names of units and of their members.

Torch-free.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from schemas.artifact import Unit
from schemas.errors import InputError
from schemas.pattern import REGEX

NEAR = 4
"""Near matches offered for a pattern that matches nothing."""


def matching(pattern: str, units: Sequence[Unit], where: str) -> list[Unit]:
    """Units whose name or a member's name the whole pattern matches; InputError with near matches if there is none."""
    if pattern.startswith(REGEX):
        test = re.compile(pattern.removeprefix(REGEX)).fullmatch
        found = [u for u in units if any(test(name) for name in (u.name, *u.members))]
    else:
        found = [u for u in units if any(fnmatchcase(name, pattern) for name in (u.name, *u.members))]
    if not found:
        names = [name for u in units for name in (u.name, *u.members)]
        raise InputError(
            "a pattern matches no unit",
            where=where,
            got=pattern,
            wanted="for example " + ", ".join(near_names(pattern, names)),
            fix="a glob, or `re:` and a regular expression, is compared with the whole name of a unit or of a linear",
        )
    return found


def near_names(pattern: str, names: Sequence[str]) -> list[str]:
    """The names most like a pattern, by its literal text; the first names if nothing is alike."""
    literal = re.sub(r"[^A-Za-z0-9_.]+", "", pattern.removeprefix(REGEX).replace(r"\.", ".").replace(".*", ""))
    inside = [n for n in names if literal and literal.strip(".").lower() in n.lower()]
    alike = difflib.get_close_matches(literal, names, NEAR, cutoff=0.5)
    return list(dict.fromkeys([*inside[:NEAR], *alike, *names[:NEAR]]))[:NEAR]
