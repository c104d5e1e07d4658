"""The nodes of a second round: score again around the first plan, solve again, keep what measures better."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from schemas.recipe import Node, ShortRecipe

MakeNode = Callable[..., Node]


def choosing_text(short: ShortRecipe, node: MakeNode) -> dict[str, Node]:
    """Text that nothing is learned from or judged on: its own source, or held out of the calibration text."""
    text = short.text
    source: dict[str, Any] = {"source": text.calibrate, "part": "held_out"}
    if text.choose is not None:
        source = {"source": text.choose}
    cut = {"layout": "document", "length": text.length, "windows": text.choose_windows, "seed": text.seed}
    return {
        "choosing_text": node("text", field=text.field, **source),
        "choosing": node("tokenize", {"text": "choosing_text", "model": "model"}, **cut),
        "choosing_reference": node("reference", {"model": "model", "tokens": "choosing"}, batch=short.batch),
    }


def second_round(short: ShortRecipe, allocate: Mapping[str, Any], node: MakeNode) -> dict[str, Node]:
    """Everything from the first plan to the one that is kept, which is the node `plan`."""
    common = {"model": "model", "candidates": "candidates"}
    around = {"tokens": "scoring", "reference": "scoring_reference", "plan": "first_plan", "selection": "first"}
    pairs = {"interactions": "interactions"} if short.pairs else {}
    nodes = {"first_plan": node("allocate", {**common, "scores": "scores"}, **allocate)}
    if short.pairs:
        probed = {"tokens": "scoring", "reference": "scoring_reference", "plan": "first_plan"}
        nodes["interactions"] = node("pair_probe", {**common, **probed}, batch=short.batch)
    nodes["rescored"] = node("rescore", {**common, "scores": "scores", **around, **pairs}, batch=short.batch)
    nodes["second_plan"] = node("allocate", {**common, "scores": "rescored"}, **allocate)
    for name in ("first", "second"):
        nodes[name] = node("select", {"candidates": "candidates", "plan": f"{name}_plan"}, plan="plan")
        nodes[f"{name}_trial"] = node(
            "evaluate",
            {"model": "model", "selection": name, "tokens": "choosing", "reference": "choosing_reference"},
            batch=short.batch,
        )
    trials = {f"{name}_evaluation": f"{name}_trial" for name in ("first", "second")}
    nodes["plan"] = node("choose", {"first": "first_plan", "second": "second_plan", **trials})
    return nodes
