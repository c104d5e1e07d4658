"""Second round of scores: what a unit costs in a format while all other units keep what a plan gave them.

One-at-a-time scores add up only as far as the damages of units do not interact. Around a plan that is solved already,
interactions can be measured: the score of unit u in format f becomes KL(plan with u in f) - KL(plan with u as it was
in the original). For the plan itself and for every plan that changes one unit, sums of such scores differ by exactly
what KL differs by; `around` lets the reader of the table turn the sum into the KL.

N windows, S positions, D hidden size, P predicted positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from schemas.errors import InputError
from schemas.sensitivity import Rescore
from steps.model.overlay import overlay
from steps.model.whole import swaps_of
from steps.sensitivity.kl_probe import Original, find_unit, prepare, probe, unit_swaps
from steps.sensitivity.score import score_output
from steps.step import Env, Output, Value
from steps.verify.metrics import document_means, weighted_mean


@dataclass(frozen=True)
class Incumbent:
    """The model with the plan's selection in place, and its KL to the original."""

    original: Original
    kl_P: torch.Tensor

    def around(self) -> dict[str, Any]:
        """KL of the plan on this text, whole and per document."""
        documents, weights = document_means(self.kl_P, self.original.positions)
        return {"kl": weighted_mean(documents, weights), "documents": documents}


@torch.no_grad()
def run(spec: Rescore, inputs: Mapping[str, Value], env: Env) -> dict[str, Output]:
    """`scores` of one candidate, in nats per predicted position, with its means per document.

    Measured for the plan's own format, where `around` is KL(original || plan), and for its neighbours (`neighbours` of
    the plan). Other formats have the score None, which is not offered, unless `interactions` are given: then the first
    score plus the unit's interactions with what the others have. Blocks are resident in fp32, as in kl_probe.
    """
    item, first, plan = inputs["candidates"], inputs["scores"].meta, inputs["plan"].meta
    unit, name = str(first["unit"]), str(first["format"])
    if unit not in plan["plan"]:
        raise InputError("the plan has no format for a unit", where=unit, fix="rescore around a plan of this model")
    if name not in plan["neighbours"][unit]:
        return {"scores": Output(meta={**_guess(first, inputs), "unit": unit, "format": name})}
    sources = tuple(inputs[port] for port in ("model", "selection", "tokens", "reference"))
    key = (*(getattr(value, "digest", id(value)) for value in sources), env.device, spec.batch)
    incumbent = env.remember(("rescore", *key), lambda: _incumbent(inputs, spec.batch, env.device))
    without_P = env.remember(("rescore_without", *key, unit), lambda: _swapped(incumbent, inputs, None, env.device))
    chosen = name == plan["plan"][unit]
    with_P = incumbent.kl_P if chosen else _swapped(incumbent, inputs, item, env.device)
    found = score_output(item.meta, with_P - without_P, incumbent.original.positions, changed=False)
    return {"scores": Output(meta={**found.meta, **({"around": incumbent.around()} if chosen else {})})}


def _incumbent(inputs: Mapping[str, Value], batch: int, device: str) -> Incumbent:
    changed = overlay(inputs["model"], inputs["selection"])
    original = prepare(changed, inputs["tokens"], inputs["reference"], batch, device, inputs["model"])
    return Incumbent(original, probe(original, {original.stream.blocks - 1: {}}))


def _swapped(incumbent: Incumbent, inputs: Mapping[str, Value], item: Value | None, device: str) -> torch.Tensor:
    """kl_P of the plan with one unit as in `item`, or as in the original."""
    unit, tensors = find_unit(inputs["model"], inputs["candidates"]), inputs["model"].tensors
    if item is not None:
        return probe(incumbent.original, unit_swaps(unit, item, device))
    weights = {member: tensors[f"{member}.weight"].float().to(device) for member in unit.members}
    return probe(incumbent.original, swaps_of(unit, weights))


def _guess(first: Mapping[str, Any], inputs: Mapping[str, Value]) -> dict[str, Any]:
    """A score that was not measured: None, or from pairwise interactions to second order.

    interaction(u in f, v) is 2 cos_uv sqrt(score of u in f x score of v), where cos_uv was measured in other formats.
    """
    if "interactions" not in inputs:
        return {"score": None}
    scores = {row["unit"]: float(row["score"]) for row in inputs["plan"].meta["rows"]}
    cosines = correlations(inputs["interactions"].meta["pairs"], str(first["unit"]))
    root = math.sqrt(max(float(first["score"]), 0.0))
    context = sum(2 * cos * root * math.sqrt(max(scores.get(other, 0.0), 0.0)) for other, cos in cosines.items())
    factor = 1 + context / float(first["score"]) if first["score"] else 1.0
    return {
        "score": factor * float(first["score"]),
        "documents": [factor * value for value in first["documents"]],
        "weights": first["weights"],
        "estimated": True,
    }


def correlations(pairs: Iterable[Mapping[str, Any]], unit: str) -> dict[str, float]:
    """Other unit -> mean correlation with this one over the pairs of formats that were measured."""
    found: dict[str, list[float]] = {}
    for pair in pairs:
        if unit in (pair["first"], pair["second"]):
            other = pair["second"] if pair["first"] == unit else pair["first"]
            found.setdefault(other, []).append(float(pair["correlation"]))
    return {other: sum(values) / len(values) for other, values in found.items()}
