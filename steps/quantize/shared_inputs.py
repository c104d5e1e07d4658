"""The parts of a unit that are solved together: members with one input, hence one Hessian.

I inputs, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

import torch

from schemas.artifact import Unit
from steps.quantize.checks import check_tensor
from steps.step import Value


def shared_inputs(unit: Unit) -> list[Unit]:
    """The unit cut wherever the next member reads another input; itself when all read the same."""
    rows = zip(unit.members, unit.shapes, unit.statistics, strict=True)
    parts = [list(part) for _, part in groupby(rows, key=lambda row: row[2])]
    columns = [tuple(zip(*part, strict=True)) for part in parts]
    return [unit.model_copy(update={"members": m, "shapes": s, "statistics": t}) for m, s, t in columns]


def hessian_of(part: Unit, statistics: Value, device: str) -> torch.Tensor:
    """H_II of what the members read, checked.

    A row of the embedding is an output, not an input: its error is the row's own, so H is 2 I (and the loss ||dw||^2).
    A matrix that is also the head answers for both: the head's H, and its mean diagonal again in every direction.
    """
    columns, name = part.shapes[0][1], f"{part.statistics[0]}.hessian"
    if part.use == "embedding":
        return 2 * torch.eye(columns, device=device)
    H_II = statistics.tensors[name].to(device)
    check_tensor(H_II, (columns, columns), f"{name} of block {part.block}")
    if part.use == "tied":
        return H_II + H_II.diagonal().mean() * torch.eye(columns, device=device)
    return H_II


def row_weights(part: Unit, statistics: Value, device: str) -> torch.Tensor | None:
    """How often each row is used per token, fp64 [V], of an embedding; None where every token uses every row."""
    if part.use != "embedding":
        return None
    frequency_V = statistics.tensors[f"{part.statistics[0]}.frequency"]
    check_tensor(frequency_V, (part.shapes[0][0],), f"{part.statistics[0]}.frequency")
    return frequency_V.to(device).double()


def coverage_of(part: Unit, statistics: Value) -> dict[str, Any]:
    """What is known of the tokens behind the Hessian: how many, and the weight that an expert's own have in it."""
    facts: Mapping[str, Any] = statistics.meta.get("groups", {}).get(part.statistics[0], {})
    return {name: facts[name] for name in ("tokens", "own") if name in facts}
