"""The parts of a unit that are solved together: members with one input, hence one Hessian.

I inputs, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

import torch

from schemas.artifact import Unit
from schemas.errors import InputError
from steps.quantize.checks import check_tensor
from steps.step import Value

TIED_SHARE = 0.1
"""Weight of the embedding's own error against the head's in a tied matrix: the best of 0, 0.1, 1 and 10 at 3 and 4 bits
on the demo model, and all but the best at 8 (tests/benchmarks/tied.py)."""


def shared_inputs(unit: Unit) -> list[Unit]:
    """The unit cut wherever the next member reads another input; itself when all read the same."""
    rows = zip(unit.members, unit.shapes, unit.statistics, strict=True)
    parts = [list(part) for _, part in groupby(rows, key=lambda row: row[2])]
    columns = [tuple(zip(*part, strict=True)) for part in parts]
    return [unit.model_copy(update={"members": m, "shapes": s, "statistics": t}) for m, s, t in columns]


def hessian_of(part: Unit, statistics: Value, device: str) -> torch.Tensor:
    """H_II of what the members read, checked.

    A row of the embedding is an output, not an input: its error is the row's own, so H is 2 I (and the loss ||dw||^2).
    A matrix that is also the head answers for both: the head's H, and a share of its mean diagonal in every direction.
    """
    columns, name = part.shapes[0][1], f"{part.statistics[0]}.hessian"
    if part.use == "embedding":
        return 2 * torch.eye(columns, device=device)
    H_II = _found(statistics, name, part).to(device)
    check_tensor(H_II, (columns, columns), f"{name} of block {part.block}")
    if part.use == "tied":
        return H_II + TIED_SHARE * H_II.diagonal().mean() * torch.eye(columns, device=device)
    return H_II


def row_weights(part: Unit, statistics: Value, device: str) -> torch.Tensor | None:
    """How often each row is used per token, fp64 [V], of an embedding; None where every token uses every row."""
    if part.use != "embedding":
        return None
    frequency_V = _found(statistics, f"{part.statistics[0]}.frequency", part)
    check_tensor(frequency_V, (part.shapes[0][0],), f"{part.statistics[0]}.frequency")
    return frequency_V.to(device).double()


def _found(statistics: Value, name: str, part: Unit) -> torch.Tensor:
    if name not in statistics.tensors:
        raise InputError(
            "nothing was calibrated for this unit",
            where=f"unit {part.name}, statistics of block {part.block}",
            wanted=name,
            fix="say `ends: true` on the calibrate node" if part.use != "linear" else "calibrate this model",
        )
    return statistics.tensors[name]


def coverage_of(part: Unit, statistics: Value) -> dict[str, Any]:
    """What is known of the tokens behind the Hessian: how many, and the weight that an expert's own have in it."""
    facts: Mapping[str, Any] = statistics.meta.get("groups", {}).get(part.statistics[0], {})
    return {name: facts[name] for name in ("tokens", "own") if name in facts}
