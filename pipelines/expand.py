"""Expand the short form of a recipe to the explicit DAG."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from pipelines.methods.rounding import rounding_of
from schemas.calibrate import ModelSource
from schemas.recipe import Node, Recipe, ShortRecipe
from steps.model.structure import units

PROBE_LIMIT = 100_000_000
"""Linear weights up to which one forward pass per (unit, format) is cheap enough to be the default metric."""


def expand(short: ShortRecipe, open_meta: Callable[[ModelSource], Mapping[str, Any]]) -> Recipe:
    """The recipe's nodes; `open_meta` reads a model's config and shapes (only for `sensitivity: auto`)."""
    source = ModelSource(step="model", source=short.model.source, revision=short.model.revision)
    nodes = {
        "model": Node(spec=source),
        **_text_nodes(short),
        **_candidate_nodes(short),
        "scores": _score_node(short, source, open_meta),
        **_plan_nodes(short),
        **_build_nodes(short),
    }
    return Recipe(name=short.name, nodes=nodes)


def _node(step: str, inputs: dict[str, str] | None = None, **fields: Any) -> Node:
    return Node.model_validate({"step": step, "inputs": inputs or {}, **fields})


def _text_nodes(short: ShortRecipe) -> dict[str, Node]:
    text = short.text

    def tokens(source: str, layout: str, windows: int, skip: int = 0) -> Node:
        return _node(
            "tokenize",
            {"text": source, "model": "model"},
            layout=layout,
            length=text.length,
            windows=windows,
            skip=skip,
            seed=text.seed,
        )

    nodes = {
        "calibration_text": _node("text", source=text.calibrate, field=text.field),
        "evaluation_text": _node("text", source=text.evaluate, field=text.field),
        "calibration": tokens("calibration_text", "stream", text.calibrate_windows),
        "scoring": tokens("calibration_text", "document", text.score_windows),
        "evaluation": tokens("evaluation_text", "document", text.evaluate_windows),
        "reference": _node("reference", {"model": "model", "tokens": "evaluation"}, batch=short.batch),
    }
    if short.distill is not None:
        nodes["training"] = tokens("calibration_text", "stream", text.distill_windows, skip=text.calibrate_windows)
    return nodes


def _candidate_nodes(short: ShortRecipe) -> dict[str, Node]:
    rounding = short.rounding or rounding_of(short.method)
    return {
        "statistics": _node("calibrate", {"model": "model", "tokens": "calibration"}, batch=short.batch),
        "candidates": _node(
            "quantize", {"model": "model", "statistics": "statistics"}, formats=short.formats, rounding=rounding
        ),
        "scoring_reference": _node("reference", {"model": "model", "tokens": "scoring"}, batch=short.batch),
    }


def _score_node(short: ShortRecipe, source: ModelSource, open_meta: Callable[[ModelSource], Mapping[str, Any]]) -> Node:
    metric = short.sensitivity
    if metric == "auto":
        meta = open_meta(source)
        weights = sum(math.prod(shape) for unit in units(meta["config"], meta["shapes"]) for shape in unit.shapes)
        metric = "kl_probe" if weights <= PROBE_LIMIT else "fisher"
    inputs = {"model": "model", "candidates": "candidates", "tokens": "scoring"}
    if metric == "kl_probe":
        inputs["reference"] = "scoring_reference"
    return _node(metric, inputs, batch=short.batch)


def _plan_nodes(short: ShortRecipe) -> dict[str, Node]:
    nodes = {
        "plan": _node(
            "allocate",
            {"model": "model", "candidates": "candidates", "scores": "scores"},
            budget=short.budget,
            allocator=short.allocator,
            pins=short.pins,
            pack=short.pack,
        )
    }
    for name, plan in (("allocated", "plan"), ("uniform", "uniform"), ("greedy", "greedy")):
        nodes[name] = _node("select", {"candidates": "candidates", "plan": "plan"}, plan=plan)
        nodes[f"{name}_evaluation"] = _node(
            "evaluate",
            {"model": "model", "selection": name, "tokens": "evaluation", "reference": "reference"},
            batch=short.batch,
        )
    return nodes


def _build_nodes(short: ShortRecipe) -> dict[str, Node]:
    nodes, final = {}, "allocated"
    if short.distill is not None:
        final = "distilled"
        nodes[final] = _node(
            "distill",
            {"model": "model", "selection": "allocated", "tokens": "training"},
            **short.distill.model_dump(),
            seed=short.text.seed,
        )
    nodes["packed"] = _node("pack", {"model": "model", "selection": final}, format=short.pack)
    nodes["verdict"] = _node(
        "verify",
        {
            "packed": "packed",
            "model": "model",
            "selection": final,
            "tokens": "evaluation",
            "reference": "reference",
            "plan": "plan",
            "allocated": "allocated_evaluation",
            "uniform": "uniform_evaluation",
            "greedy": "greedy_evaluation",
        },
        gates=short.gates,
        batch=short.batch,
    )
    return nodes
