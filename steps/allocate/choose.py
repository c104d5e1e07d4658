"""Choose between two plans by measurement, on text that neither scores, calibration nor evaluation have seen.

B resamples, D documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from schemas.allocate import Choose
from schemas.report import Contrast
from steps.step import Env, Output, Value
from steps.verify.bootstrap import contrast, draw, interval, means

BASELINES = ("uniform", "greedy")
NAMES = ("first", "second")


def run(spec: Choose, inputs: Mapping[str, Value], env: Env) -> dict[str, Output]:
    """inputs first, second (plans), first_evaluation, second_evaluation -> the plan that is kept, and `rounds`.

    The one of lower KL is kept; `contrast` says whether the difference means anything. Baselines are always the
    first's: they were made without looking at the second round.
    """
    plans = {name: inputs[name].meta for name in NAMES}
    rows = {name: inputs[f"{name}_evaluation"].meta["documents"] for name in NAMES}
    count_BD = draw(len(rows["first"]), spec.bootstrap, spec.seed)
    found = contrast(("second", "first"), rows["second"], rows["first"], count_BD)
    kept = "second" if found.difference.value < 0 else "first"
    moved = sum(plans["first"]["plan"][unit] != fmt for unit, fmt in plans["second"]["plan"].items())
    rounds = [
        {
            "round": number,
            "predicted_kl": plans[name]["predicted_kl"]["plan"],
            "measured": interval(means(count_BD, rows[name], "kl")).model_dump(mode="json"),
            "bytes": plans[name]["bytes"]["plan"],
            "kept": name == kept,
        }
        for number, name in enumerate(NAMES, 1)
    ]
    evidence = {"rounds": rounds, "moved": moved, "contrast": found.model_dump(mode="json")}
    notes = [_note(found, moved)]
    return {"plan": Output(meta={**_with_baselines(plans[kept], plans["first"]), **evidence, "notes": notes})}


def _with_baselines(kept: Mapping[str, Any], first: Mapping[str, Any]) -> dict[str, Any]:
    """The kept plan with the first plan's baselines, their sizes and predictions."""
    found = {**kept, "uniform_format": first["uniform_format"], **{name: first[name] for name in BASELINES}}
    for facts in ("bytes", "predicted_kl"):
        found[facts] = {**kept[facts], **{name: first[facts][name] for name in BASELINES}}
    found["certificate"] = {**kept["certificate"], "baselines": first["certificate"]["baselines"]}
    return found


def _note(found: Contrast, moved: int) -> str:
    if not moved:
        return "the second round chose the same plan"
    gap = found.difference
    kept = "kept" if gap.value < 0 else "not kept"
    return (
        f"second round: {moved} units moved, {found.verdict} on text held out for choosing "
        f"(KL {gap.value:+.5f} [{gap.low:+.5f}, {gap.high:+.5f}]), {kept}"
    )
