"""Swap two neighbouring units at once: what the sum of single scores, which every allocator adds up, leaves out.

To second order a unit's error moves the predictions by a vector a, in the metric of the Fisher matrix, and KL = |a|^2.
Both errors together then give |a + b|^2 = |a|^2 + |b|^2 + 2 a.b, so that `interaction` = 2 a.b and `correlation` = the
cosine of a and b. It changes less with the formats than the interaction itself, and so serves formats not measured:
interaction(u in f, v in g) ~ 2 correlation sqrt(score(u, f) score(v, g)).

The pairwise terms of integer programs as in Deng et al., "CLADO" (arXiv:2307.05657), there for all pairs.

P predicted positions, B resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from schemas.artifact import Unit, item_name
from schemas.errors import InputError
from schemas.sensitivity import PairProbe
from steps.model.structure import find_units
from steps.sensitivity.kl_probe import Original, differs, probe, remembered, unit_swaps
from steps.sensitivity.score import score_output
from steps.step import Env, Output, Value
from steps.verify.bootstrap import draw, interval, means

Chosen = tuple[Unit, str]
"""A unit and the name of its format."""


@dataclass(frozen=True)
class Measurer:
    """KL per document of the original with some candidates swapped in; what is asked for again is remembered."""

    original: Original
    candidates: Value
    device: str

    @torch.no_grad()
    def rows(self, *chosen: Chosen) -> list[dict[str, float]]:
        """`tokens` and mean `kl` of every document. InputError for a KL that is not finite, or 0 for other weights."""
        swaps: dict[int, dict[str, torch.Tensor]] = {}
        for unit, fmt in chosen:
            item = self.candidates.children[item_name(unit.name, fmt)]
            for block, held in unit_swaps(unit, item, self.device).items():
                swaps.setdefault(block, {}).update(held)
        changed = differs(self.original, swaps)
        *others, (last, fmt) = chosen
        about = {"unit": "".join(f"{u.name} in {f} and " for u, f in others) + last.name, "format": fmt}
        found = score_output(
            about, probe(self.original, swaps), self.original.positions, changed, self.original.noise
        ).meta
        return [{"tokens": w, "kl": d} for d, w in zip(found["documents"], found["weights"], strict=True)]


def run(spec: PairProbe, inputs: Mapping[str, Value], env: Env) -> dict[str, Output]:
    """`interactions`: meta `pairs`, each with the two units, their formats, KL (nats per predicted position) of each
    alone and of both, the interaction with its bootstrap interval, the correlation; and `additivity` over all pairs."""
    model, candidates = inputs["model"], inputs["candidates"]
    measurer = Measurer(remembered(inputs, spec.batch, env), candidates, env.device)
    single = cache(lambda unit, fmt: measurer.rows((unit, fmt)))
    wanted = list(_pairs(spec, _units(model, candidates), candidates, inputs.get("plan")))
    if not wanted:
        raise InputError(
            "there is no pair of neighbouring units to probe",
            where="pair_probe",
            got=f"{len(candidates.children)} candidates",
            wanted="two units at most `span` apart with candidates of the formats asked for",
        )
    pairs = []
    for done, (first, second) in enumerate(wanted):
        rows = single(*first), single(*second), measurer.rows(first, second)
        pairs.append(_pair(spec, first, second, rows))
        env.progress(done + 1, len(wanted), "pairs")
    return {"interactions": Output(meta={"pairs": pairs, "additivity": _additivity(pairs)})}


def _units(model: Value, candidates: Value) -> list[Unit]:
    """Units that have candidates, in model order."""
    named = {name.rpartition("/")[0] for name in candidates.children}
    return find_units(model.meta["config"], model.meta["shapes"], named)


def _pairs(
    spec: PairProbe, found: Sequence[Unit], candidates: Value, plan: Value | None
) -> Iterator[tuple[Chosen, Chosen]]:
    """Neighbours in the formats that the spec or the plan says, and of which both have candidates."""
    asked = [fmt.name for fmt in spec.formats] or list(dict.fromkeys(n.rpartition("/")[2] for n in candidates.children))
    for i, first in enumerate(found):
        for second in found[i + 1 : i + 1 + spec.span]:
            if plan is not None:
                yield (first, _planned(plan, first, candidates)), (second, _planned(plan, second, candidates))
                continue
            for fmt in asked:
                if all(item_name(unit.name, fmt) in candidates.children for unit in (first, second)):
                    yield (first, fmt), (second, fmt)


def _planned(plan: Value, unit: Unit, candidates: Value) -> str:
    fmt = (plan.meta.get("plan") or {}).get(unit.name)
    if fmt is None or item_name(unit.name, fmt) not in candidates.children:
        raise InputError(
            "the plan does not fit the candidates",
            where=unit.name,
            got=str(fmt),
            wanted="a format that the unit has a candidate of",
            fix="use a plan made from these candidates",
        )
    return str(fmt)


def _pair(
    spec: PairProbe, first: Chosen, second: Chosen, rows: tuple[Sequence[Mapping[str, float]], ...]
) -> dict[str, Any]:
    count_BD = draw(len(rows[0]), spec.resamples, spec.seed)
    first_B, second_B, both_B = (means(count_BD, of, "kl") for of in rows)
    added = interval(both_B - first_B - second_B)
    size = 2 * math.sqrt(first_B[0].item() * second_B[0].item())
    return {
        "first": first[0].name,
        "second": second[0].name,
        "formats": [first[1], second[1]],
        "kl_first": first_B[0].item(),
        "kl_second": second_B[0].item(),
        "kl_both": both_B[0].item(),
        "interaction": added.value,
        "low": added.low,
        "high": added.high,
        "correlation": added.value / size if size else 0.0,
    }


def _additivity(pairs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Over all pairs: the sum of single KLs, the sum of the KLs of both, and their ratio (1: scores add up)."""
    apart = math.fsum(pair["kl_first"] + pair["kl_second"] for pair in pairs)
    together = math.fsum(pair["kl_both"] for pair in pairs)
    return {"apart": apart, "together": together, "ratio": together / apart if apart else 1.0}
