"""Limits beside the size of the whole: bytes of parts of the model, latency from a measured table. Torch-free.

U units, C formats, both in the order of the sizing.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

import numpy as np

from schemas.artifact import Unit
from schemas.budget import Budget, Latency, PartLimit
from schemas.errors import InputError
from schemas.format import Format
from steps.allocate.pins import matching
from steps.allocate.problem import Row
from steps.allocate.sizing import Sizing
from steps.model.structure import use_share


def extra_rows(budget: Budget, sizing: Sizing) -> tuple[Row, ...]:
    """The rows that a budget's parts and latency make."""
    rows = [_part_row(part, i, sizing) for i, part in enumerate(budget.parts)]
    if budget.latency is not None:
        rows.append(_latency_row(budget.latency, sizing))
    return tuple(rows)


def _part_row(part: PartLimit, number: int, sizing: Sizing) -> Row:
    inside = {u.name for u in matching(part.units, sizing.units, f"budget.parts[{number}].units")}
    cost_UC = [[sizing.unit(u, f) if u.name in inside else 0 for f in sizing.formats] for u in sizing.units]
    return Row(f"parts[{number}] ({part.units})", np.array(cost_UC, dtype=np.float64), float(part.bytes), "bytes")


def _latency_row(latency: Latency, sizing: Sizing) -> Row:
    table = {(t.shape, t.format): t.microseconds for t in latency.timings}
    _check_complete(table.keys(), sizing)
    cost_UC = [
        [_microseconds(u, f, table, sizing) if sizing.has(u, name) else 0.0 for name, f in sizing.formats.items()]
        for u in sizing.units
    ]
    return Row("latency", np.array(cost_UC), latency.microseconds, "microseconds")


def _microseconds(
    unit: Unit, fmt: Format, table: Mapping[tuple[tuple[int, int], Format], float], sizing: Sizing
) -> float:
    """Time of a unit per token: of an expert, as often as the router chooses it; to look an embedding up is free."""
    if unit.use == "embedding":
        return 0.0
    pairs = zip(unit.members, unit.shapes, strict=True)
    return sum(use_share(sizing.config, member) * table[shape, fmt] for member, shape in pairs)


def _check_complete(known: Container[object], sizing: Sizing) -> None:
    used = [unit for unit in sizing.units if unit.use != "embedding"]
    pairs = ((s, f) for u in used for n, f in sizing.formats.items() if sizing.has(u, n) for s in u.shapes)
    missing = [f"{s[0]}x{s[1]} in {f.name}" for s, f in dict.fromkeys(pairs) if (s, f) not in known]
    if missing:
        raise InputError(
            "the latency table has gaps",
            where="budget.latency.timings",
            got=f"{len(missing)} missing: " + ", ".join(missing[:6]),
            wanted="a time for every shape of linear in every format offered",
            fix="measure them in the engine that will serve the model: bitsmith latency RECIPE --json FILE",
        )
