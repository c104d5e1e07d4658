"""ZD: a block matters the more, the fewer of its weights stand out.

ZD = share of a block's weights with z-score (w - mean) / deviation above 1; blocks with a small share keep their bits:
Dumitru et al., "Layer-Wise Quantization" (arXiv:2406.17415); weights of all linears of the block pooled, no data.
Differs from the paper: 1 / share is multiplied by the relative squared error of the unit in the format at hand, for
the reason given in lim.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from schemas.artifact import Unit
from schemas.errors import InputError
from schemas.sensitivity import ZD
from steps.model.structure import units
from steps.sensitivity.recorded import changed, energies, relative_squared_error, units_of
from steps.sensitivity.score import plain_score
from steps.step import Env, Output, Value


def run(spec: ZD, inputs: Mapping[str, Value], env: Env) -> dict[str, Output]:
    """`scores`: 1 / ZD of the unit's block, times ||dW||^2 / ||W||^2. No unit."""
    model, energy, scores = inputs["model"], energies(inputs["model"], inputs["candidates"]), {}
    share_B = shares(model, spec.threshold)
    for name, unit, item in units_of(model, inputs["candidates"]):
        if not share_B[unit.block] > 0:
            raise InputError(
                "a block has no weight above the z-score threshold, so ZD says nothing about it",
                where=f"unit {unit.name}",
                got=f"share {share_B[unit.block]:g} above {spec.threshold:g} deviations",
                fix="lower the threshold, or choose another metric",
            )
        damage = relative_squared_error(item, energy) / share_B[unit.block]
        scores[name] = plain_score(item.meta, damage, changed(item))
    return {"scores": Output(children=scores)}


def shares(model: Value, threshold: float) -> dict[int, float]:
    """Block -> share of its weights above mean + threshold deviations; NaN for constant weights. One linear is held."""
    by_block: dict[int, list[Unit]] = {}
    for unit in units(model.meta["config"], model.meta["shapes"]):
        by_block.setdefault(unit.block, []).append(unit)
    found = {}
    for block, members in by_block.items():
        names = [f"{member}.weight" for unit in members for member in unit.members]
        found[block] = _share(model, names, threshold)
    return found


def _share(model: Value, names: Sequence[str], threshold: float) -> float:
    """Two passes over the tensors: moments in fp64, then the count."""
    read = (model.tensors[name].double() for name in names)
    sizes, sums, squares = zip(*((t.numel(), t.sum().item(), t.square().sum().item()) for t in read), strict=True)
    total: int = sum(sizes)
    mean = math.fsum(sums) / total
    deviation = math.sqrt(max(math.fsum(squares) / total - mean**2, 0.0))
    if deviation == 0:
        return math.nan
    bound = mean + threshold * deviation
    return sum(int(torch.count_nonzero(model.tensors[name].double() > bound)) for name in names) / total
