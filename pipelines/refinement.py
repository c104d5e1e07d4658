"""The part of a short recipe that comes after selection: which refinement, on which text, in which nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

from pydantic import ValidationError

from pipelines.methods.refine import RECODED, UNTRAINED, refinement_of
from schemas.distill import Blocks, Distill, Join, Outputs, Recode, Reconstruct, Training
from schemas.errors import InputError
from schemas.recipe import DistillFields, Node, Refinement, ShortRecipe, Streamed
from steps.distill.schedule import LARGEST_SHARE

ELSEWHERE = {"method", "text", "recode"}
"""Fields of a recipe's `distill` that are no fields of the step."""
STREAMED = (Outputs(kind="outputs"),)
"""The one objective of a block that is refined by itself."""


def asked(short: ShortRecipe) -> DistillFields | None:
    """What a recipe says of refinement; a method that is about refinement implies one."""
    implied = short.method in get_args(Refinement)
    return short.distill or (DistillFields() if implied else None)


def _method(short: ShortRecipe, fields: DistillFields) -> Refinement:
    implied: Any = short.method if short.method in get_args(Refinement) else "latent"
    return fields.method or implied


def recoded(short: ShortRecipe, fields: DistillFields, held_out: int) -> Recode | None:
    """How codes are chosen again before a training that holds out so many windows; None where they are not."""
    wanted = fields.recode if fields.recode is not None else _method(short, fields) in RECODED
    if not wanted:
        return None
    given = {} if wanted is True else {name: value for name, value in wanted if value is not None}
    return Recode(step="recode", held_out=held_out, seed=short.text.seed, **given)


def refined(short: ShortRecipe, fields: DistillFields) -> Distill:
    """The method's row with the recipe's own choices in place."""
    row = refinement_of(_method(short, fields))
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
            fix=f"change them, or another field of `{_method(short, fields)}` with them",
        ) from error


def training_text(short: ShortRecipe, tokens: Callable[..., Node]) -> dict[str, Node]:
    """The nodes of the training windows: as many as the budget needs and holding out takes, and those held out."""
    fields = asked(short)
    if fields is None:
        return {}
    spec, length = refined(short, fields), short.text.length
    again = recoded(short, fields, spec.held_out)
    training = 0 if _method(short, fields) in UNTRAINED else -(-spec.tokens // length)
    # At most one window in LARGEST_SHARE is held out: of a short training the others only make that many.
    others = (LARGEST_SHARE - 1) * spec.held_out
    windows = max(training, again.windows if again else 0, others) + spec.held_out
    if fields.text is None:
        skip = short.text.calibrate_windows
        return {"training": tokens("calibration_text", "stream", windows, skip=skip)}
    source = Node.model_validate({"step": "text", "source": fields.text, "field": short.text.field})
    return {"training_text": source, "training": tokens("training_text", "stream", windows)}


def refinement(short: ShortRecipe) -> tuple[dict[str, Node], str]:
    """The nodes that refine the selection `allocated`, and the name of the one that gives the final selection."""
    fields = asked(short)
    if fields is None:
        return {}, "allocated"
    spec = refined(short, fields)
    inputs = {"model": "model", "selection": "allocated", "tokens": "training"}
    again, nodes = recoded(short, fields, spec.held_out), dict[str, Node]()
    if again is not None:
        nodes["recoded"] = Node(spec=again, inputs=inputs)
        inputs = {**inputs, "selection": "recoded"}
    if _method(short, fields) in UNTRAINED:
        _refuse_untrained(fields, again)
        return nodes, "recoded"
    if not isinstance(fields.scope, Streamed):
        return {**nodes, "distilled": Node(spec=spec, inputs=inputs)}, "distilled"
    if spec.objective != STREAMED:
        raise InputError(
            "this refinement needs the whole model",
            where="distill.scope",
            got="stream, with another objective than a block's output",
            wanted="a method that matches block outputs alone: autoround, adaquant",
            fix="leave `scope` out, choose one of these methods, or give `objective: [{kind: outputs}]`",
        )
    shared = {name: getattr(spec, name) for name in Training.model_fields}
    join = Join(step="join", **{name: shared[name] for name in ("batch", "held_out", "seed")})
    return {
        **nodes,
        "refined": Node(spec=Reconstruct(step="reconstruct", **shared), inputs=inputs),
        "distilled": Node(spec=join, inputs={**inputs, "refined": "refined"}),
    }, "distilled"


def _refuse_untrained(fields: DistillFields, again: Recode | None) -> None:
    """InputError for fields of a training where there is none, and where nothing at all would be done."""
    said = fields.model_fields_set - {"method", "text", "recode", "held_out"}
    if said or again is None:
        raise InputError(
            "`recode` trains nothing",
            where="distill",
            got=", ".join(sorted(said)) or "recode: false",
            wanted="text, recode and held_out alone",
            fix="leave these out, or take `method: latent`, which trains after recoding",
        )
