"""How far the sum of the units' scores is from what the whole plan costs, on the very text they were scored on.

On the same text and documents the only difference left is that damages were added up; between texts there would be
another one. B resamples, D documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from schemas.allocate import Additivity
from schemas.artifact import item_name
from schemas.errors import InputError
from steps.step import Env, Output, Value
from steps.verify.bootstrap import LEAST_KL, Rows, draw, interval, means, ratio


def run(spec: Additivity, inputs: Mapping[str, Value], env: Env) -> dict[str, Output]:
    """inputs plan, scores, evaluation (of the plan, on the scored tokens) -> predicted and measured KL, their ratio.

    `tolerance` is the relative half-width of the measured KL's own interval. Additivity `holds` unless the paired
    interval of measured / predicted is wholly outside 1 +- tolerance: a prediction that is off by less than the
    measurement itself is unsure of misleads nobody.
    """
    measured_rows = inputs["evaluation"].meta["documents"]
    predicted_rows = predicted(inputs["plan"].meta["plan"], inputs["scores"], measured_rows)
    if predicted_rows is None:
        return {"additivity": Output(meta={"notes": ["scores have no documents, so additivity was not measured"]})}
    count_BD = draw(len(measured_rows), spec.bootstrap, spec.seed)
    measured = interval(means(count_BD, measured_rows, "kl"))
    of_predicted = ratio(measured_rows, predicted_rows, count_BD)
    tolerance = (measured.high - measured.low) / 2 / max(measured.value, LEAST_KL)
    holds = of_predicted.low <= 1 + tolerance and of_predicted.high >= 1 - tolerance
    meta = {
        "predicted": interval(means(count_BD, predicted_rows, "kl")).model_dump(mode="json"),
        "measured": measured.model_dump(mode="json"),
        "ratio": of_predicted.model_dump(mode="json"),
        "tolerance": tolerance,
        "holds": holds,
    }
    return {"additivity": Output(meta=meta | {"notes": [] if holds else [_warning(meta)]})}


def predicted(plan: Mapping[str, str], scores: Value, measured: Rows) -> Rows | None:
    """The plan's scores added up per document; None where the metric knows no documents."""
    chosen = [scores.children[item_name(unit, fmt)].meta for unit, fmt in plan.items()]
    if not all(meta.get("documents") for meta in chosen):
        return None
    tokens = [int(row["tokens"]) for row in measured]
    if any([int(weight) for weight in meta["weights"]] != tokens for meta in chosen):
        raise InputError(
            "scores and evaluation are of different tokens",
            where="additivity",
            got=f"scores over {len(chosen[0]['weights'])} documents, evaluation over {len(tokens)}",
            wanted="the same documents",
            fix="feed both from the same tokenize node",
        )
    sums = [sum(values) for values in zip(*(meta["documents"] for meta in chosen), strict=True)]
    return [{"tokens": count, "kl": kl} for count, kl in zip(tokens, sums, strict=True)]


def _warning(meta: Mapping[str, Any]) -> str:
    low, high = meta["ratio"]["low"], meta["ratio"]["high"]
    return (
        f"scores do not add up: on the text they were measured on the plan costs {meta['ratio']['value']:.2f} "
        f"[{low:.2f}, {high:.2f}] times their sum; `rounds: 2` scores again around the plan"
    )
