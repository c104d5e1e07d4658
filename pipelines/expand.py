"""Expand the short form of a recipe to the explicit DAG."""

from __future__ import annotations

from typing import Any

from pipelines.evaluations import evaluation_nodes
from pipelines.methods.rounding import rounding_of
from pipelines.packings import for_target, packing_nodes, priced
from pipelines.refinement import refinement, training_text
from pipelines.rounds import choosing_text, second_round
from schemas.calibrate import ModelSource
from schemas.quantize import Rounding
from schemas.recipe import Node, Recipe, ShortRecipe
from schemas.sensitivity import METRICS, PREDICT_KL
from schemas.units import Ends, Units
from steps.table import STEPS


def expand(short: ShortRecipe) -> Recipe:
    """The recipe's nodes."""
    short = for_target(short)
    scores = _score_node(short)
    nodes = {
        "model": Node(spec=ModelSource(step="model", source=short.model.source, revision=short.model.revision)),
        **_text_nodes(short),
        **_candidate_nodes(short),
        "scores": scores,
        **_plan_nodes(short),
        **_additivity_nodes(short, scores.spec.step),
        **_build_nodes(short),
    }
    for name in ("scoring_reference", "scoring"):  # metrics that need no text, or no logits, leave these unread
        if not any(edge.partition(".")[0] == name for node in nodes.values() for edge in node.inputs.values()):
            del nodes[name]
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

    part = "kept" if short.rounds == 2 and text.choose is None else "all"
    nodes = {
        "calibration_text": _node("text", source=text.calibrate, field=text.field, part=part),
        "evaluation_text": _node("text", source=text.evaluate, field=text.field),
        "calibration": tokens("calibration_text", "stream", text.calibrate_windows),
        "scoring": tokens("calibration_text", "document", text.score_windows),
        "evaluation": tokens("evaluation_text", "document", text.evaluate_windows),
        "reference": _node("reference", {"model": "model", "tokens": "evaluation"}, batch=short.batch),
    }
    if short.rounds == 2:
        nodes |= choosing_text(short, _node)
    return nodes | training_text(short, tokens)


def _rounding(short: ShortRecipe) -> Rounding:
    """The method's, with the parts that the recipe names in place of its own."""
    method, asked = rounding_of(short.method), short.rounding
    return method if asked is None else method.model_copy(update={n: getattr(asked, n) for n in asked.model_fields_set})


def _candidate_nodes(short: ShortRecipe) -> dict[str, Node]:
    return {
        "statistics": _node(
            "calibrate", {"model": "model", "tokens": "calibration"}, batch=short.batch, ends=_ends(short)
        ),
        "candidates": _node(
            "quantize",
            {"model": "model", "statistics": "statistics"},
            formats=short.formats,
            rounding=_rounding(short),
            units=_units(short),
        ),
        "scoring_reference": _node("reference", {"model": "model", "tokens": "scoring"}, batch=short.batch),
    }


def _ends(short: ShortRecipe) -> bool:
    """Only where they are quantized: a change of the last block's weights changes what the head sees."""
    return short.embeddings != Ends()


def _units(short: ShortRecipe) -> Units:
    ends = short.embeddings
    return Units(grouping=short.units, embedding=ends.embedding, head=ends.head, router=short.router, keep=short.keep)


def _score_node(short: ShortRecipe) -> Node:
    sources = {"model": "model", "candidates": "candidates", "tokens": "scoring", "reference": "scoring_reference"}
    spec = METRICS[short.sensitivity]
    row = next(each for each in STEPS if each.spec is spec)
    batch = {"batch": short.batch} if "batch" in spec.model_fields else {}
    return _node(short.sensitivity, {port: sources[port] for port in row.inputs}, **batch)


def _plan_nodes(short: ShortRecipe) -> dict[str, Node]:
    asked = {"budget": short.budget, "allocator": short.allocator, "pins": short.pins, **priced(short)}
    inputs = {"model": "model", "candidates": "candidates", "scores": "scores"}
    nodes = second_round(short, asked, _node) if short.rounds == 2 else {"plan": _node("allocate", inputs, **asked)}
    for name, plan in (("allocated", "plan"), ("uniform", "uniform"), ("greedy", "greedy")):
        nodes[name] = _node("select", {"candidates": "candidates", "plan": "plan"}, plan=plan)
        nodes[f"{name}_evaluation"] = _node(
            "evaluate",
            {"model": "model", "selection": name, "tokens": "evaluation", "reference": "reference"},
            batch=short.batch,
        )
    return nodes


def _additivity_nodes(short: ShortRecipe, metric: str) -> dict[str, Node]:
    """The plan measured on the text that its scores are of, if these are nats."""
    if metric not in PREDICT_KL:
        return {}
    tokens = {"tokens": "scoring", "reference": "scoring_reference"}
    return {
        "scored_evaluation": _node(
            "evaluate", {"model": "model", "selection": "allocated", **tokens}, batch=short.batch
        ),
        "additivity": _node("additivity", {"plan": "plan", "scores": "scores", "evaluation": "scored_evaluation"}),
    }


def _build_nodes(short: ShortRecipe) -> dict[str, Node]:
    nodes, final = refinement(short)
    return {**nodes, **packing_nodes(short, final, _node), **evaluation_nodes(short, _node)}
