"""The part of a short recipe that comes after selection: which refinement, on which text, in which nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

from pipelines.methods.refine import refinement_of
from schemas.distill import Blocks, Distill, Outputs, Reconstruct, Training, Whole
from schemas.errors import InputError
from schemas.recipe import DistillFields, Node, Refinement, ShortRecipe

MakeNode = Callable[..., Node]
OVERRIDES = ("tokens", "batch", "rates", "held_out", "check_every", "patience")


def asked(short: ShortRecipe) -> DistillFields | None:
    """What a recipe says of refinement; a method that is about refinement implies one."""
    implied = short.method in get_args(Refinement)
    return short.distill or (DistillFields() if implied else None)


def refined(short: ShortRecipe, fields: DistillFields) -> Distill:
    """The method's row with the recipe's own choices in place."""
    implied: Any = short.method if short.method in get_args(Refinement) else "latent"
    row = refinement_of(fields.method or implied)
    given = {name: getattr(fields, name) for name in OVERRIDES if getattr(fields, name) is not None}
    if fields.scope == "whole":
        given["scope"] = Whole(kind="whole")
    elif fields.scope is not None and not isinstance(row.scope, Blocks):
        given["scope"] = Blocks(kind="blocks")
    return Distill.model_validate(row.model_copy(update={**given, "seed": short.text.seed}).model_dump())


def training_text(short: ShortRecipe, tokens: Callable[..., Node]) -> dict[str, Node]:
    """The nodes of the training windows: as many as the budget needs, and those held out."""
    fields = asked(short)
    if fields is None:
        return {}
    spec, length = refined(short, fields), short.text.length
    windows = -(-spec.tokens // length) + spec.held_out
    if fields.text is None:
        skip = short.text.calibrate_windows
        return {"training": tokens("calibration_text", "stream", windows, skip=skip)}
    source = Node.model_validate({"step": "text", "source": fields.text, "field": short.text.field})
    return {"training_text": source, "training": tokens("training_text", "stream", windows)}


def refinement(short: ShortRecipe, node: MakeNode) -> tuple[dict[str, Node], str]:
    """The nodes that refine the selection `allocated`, and the name of the one that gives the final selection."""
    fields = asked(short)
    if fields is None:
        return {}, "allocated"
    spec = refined(short, fields)
    inputs = {"model": "model", "selection": "allocated", "tokens": "training"}
    if fields.scope != "stream":
        return {"distilled": Node(spec=spec, inputs=inputs)}, "distilled"
    if any(not isinstance(term, Outputs) or term.fisher for term in spec.objective):
        raise InputError(
            "this refinement needs the whole model",
            where="distill.scope",
            got="stream",
            wanted="a method that matches block outputs alone: autoround, adaquant",
            fix="leave `scope` out, or choose one of these methods",
        )
    shared = {name: getattr(spec, name) for name in Training.model_fields}
    return {
        "refined": Node(spec=Reconstruct(step="reconstruct", **shared), inputs=inputs),
        "distilled": node("join", {"selection": "allocated", "refined": "refined"}),
    }, "distilled"
