"""Timing tables on disk, and recipes that name one: the recipe takes the numbers, so that its keys hold them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from schemas.errors import InputError
from schemas.timings import TimingTable


def read_timings(path: Path, read: Any) -> TimingTable:
    """The table in a YAML or JSON file."""
    if not path.is_file():
        raise InputError(
            "no such timing table",
            where="budget.latency.table",
            got=str(path),
            fix="measure one: bitsmith latency RECIPE --json FILE",
        )
    try:
        return TimingTable.model_validate(read(path))
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            "not a timing table",
            where=f"{path}: {'.'.join(str(part) for part in first['loc'])}",
            got=first["msg"],
            wanted="what `bitsmith latency` writes",
            fix="measure it again: bitsmith latency RECIPE --json FILE",
        ) from error


def with_timings(data: dict[str, Any], folder: Path, read: Any) -> dict[str, Any]:
    """A recipe whose latency budgets hold the timings of the table they name; paths are relative to the recipe.

    `read` turns a file into its mapping. Everything else is left for the schema to judge.
    """
    found = dict(data)
    if isinstance(found.get("budget"), dict):
        found["budget"] = _resolved(found["budget"], folder, read)
    if isinstance(found.get("nodes"), dict):
        found["nodes"] = {
            name: {**node, "budget": _resolved(node["budget"], folder, read)}
            if isinstance(node, dict) and isinstance(node.get("budget"), dict)
            else node
            for name, node in found["nodes"].items()
        }
    return found


def _resolved(budget: dict[str, Any], folder: Path, read: Any) -> dict[str, Any]:
    latency = budget.get("latency")
    if not isinstance(latency, dict) or "table" not in latency:
        return budget
    if "timings" in latency:
        raise InputError(
            "a latency budget has either timings or a table",
            where="budget.latency",
            got="both",
            fix="remove one of them",
        )
    table = read_timings(folder / os.path.expanduser(str(latency["table"])), read)
    timings = [each.timing().model_dump(mode="json") for each in table.timings]
    return {**budget, "latency": {**{k: v for k, v in latency.items() if k != "table"}, "timings": timings}}
