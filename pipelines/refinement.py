"""The part of a short recipe that comes after selection: which refinement, on which text, in which nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

from pydantic import ValidationError

from pipelines.methods.refine import refinement_of
from schemas.distill import Blocks, Distill, Outputs, Reconstruct, Training
from schemas.errors import InputError
from schemas.recipe import DistillFields, Node, Refinement, ShortRecipe, Streamed

MakeNode = Callable[..., Node]
ELSEWHERE = {"method", "text"}
"""Fields of a recipe's `distill` that are no fields of the step."""
STREAMED = (Outputs(kind="outputs"),)
"""The one objective of a block that is refined by itself."""


def asked(short: ShortRecipe) -> DistillFields | None:
    """What a recipe says of refinement; a method that is about refinement implies one."""
    implied = short.method in get_args(Refinement)
    return short.distill or (DistillFields() if implied else None)


def refined(short: ShortRecipe, fields: DistillFields) -> Distill:
    """The method's row with the recipe's own choices in place."""
    implied: Any = short.method if short.method in get_args(Refinement) else "latent"
    row = refinement_of(fields.method or implied)
    given = {name: value for name, value in fields if value is not None and name not in ELSEWHERE}
    if isinstance(fields.scope, Streamed):
        given["scope"] = Blocks(kind="blocks")
    try:
        return Distill.model_validate(row.model_copy(update={**given, "seed": short.text.seed}).model_dump())
    except ValidationError as error:
        raise InputError(
            "these parts of a refinement do not go together",
            where="distill",
            got="; ".join(fault["msg"].removeprefix("Value error, ") for fault in error.errors()),
            fix=f"change them, or another field of `{fields.method or implied}` with them",
        ) from error


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
    if not isinstance(fields.scope, Streamed):
        return {"distilled": Node(spec=spec, inputs=inputs)}, "distilled"
    if spec.objective != STREAMED:
        raise InputError(
            "this refinement needs the whole model",
            where="distill.scope",
            got="stream, with another objective than a block's output",
            wanted="a method that matches block outputs alone: autoround, adaquant",
            fix="leave `scope` out, choose one of these methods, or give `objective: [{kind: outputs}]`",
        )
    shared = {name: getattr(spec, name) for name in Training.model_fields}
    return {
        "refined": Node(spec=Reconstruct(step="reconstruct", **shared), inputs=inputs),
        "distilled": node("join", {"selection": "allocated", "refined": "refined"}),
    }, "distilled"
