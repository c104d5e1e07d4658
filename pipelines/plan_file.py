"""A plan file named in a recipe becomes the plan itself, so that its content, not its name, enters the build."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from schemas.errors import InputError


def with_plan(data: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's data with `allocator: {kind: given, file: F}` replaced by the plan in F."""
    allocator = data.get("allocator")
    if not isinstance(allocator, dict) or allocator.get("kind") != "given" or "file" not in allocator:
        return dict(data)
    rest = {name: value for name, value in allocator.items() if name != "file"}
    return {**data, "allocator": {**rest, "plan": read_plan(Path(str(allocator["file"])))}}


def read_plan(path: Path) -> dict[str, str]:
    """Unit -> format from what `plan --json` or `run --json` wrote, or from a plain mapping."""
    try:
        document = json.loads(path.read_text("utf-8"), object_pairs_hook=_once)
    except (OSError, ValueError) as error:
        raise _refused(path, f"{type(error).__name__}: {error}") from error
    found = document.get("allocation", document) if isinstance(document, dict) else document
    if isinstance(found, dict):
        found = found.get("plan", found)
    if isinstance(found, list) and all(isinstance(row, dict) and {"unit", "format"} <= row.keys() for row in found):
        try:
            found = _once([(row["unit"], row["format"]) for row in found])
        except ValueError as error:
            raise _refused(path, str(error)) from error
    if not isinstance(found, dict) or not found or not all(isinstance(value, str) for value in found.values()):
        raise _refused(path, "no plan")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ValueError for a name that is there twice (the last would win)."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"twice in one object: {', '.join(sorted({n for n in names if names.count(n) > 1}))}")
    return found


def _refused(path: Path, got: str) -> InputError:
    return InputError(
        "cannot read a plan",
        where=str(path),
        got=got,
        wanted="JSON: a mapping of units to formats, or what `bitsmith plan --json` or `run --json` wrote",
        fix="name a plan file in allocator.file",
    )
