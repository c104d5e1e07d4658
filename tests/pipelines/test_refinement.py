"""The short form of a refinement: every field reaches the step and changes what it does; what cannot be is refused."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from models import tiny_tokens, tiny_value
from selections import selection_of

from pipelines.expand import expand
from pipelines.recipe_file import parse_recipe
from pipelines.refinement import refined
from schemas.calibrate import Tokenize
from schemas.distill import Blocks, Distill, Recode, Reconstruct
from schemas.errors import InputError
from schemas.recipe import DistillFields, ShortRecipe
from steps.distill import run as distill
from steps.step import Env

MODEL = tiny_value()
SELECTION = selection_of(MODEL, "int2-g32")
TOKENS = tiny_tokens(40, 16)
BASE: dict[str, Any] = {
    "tokens": 6 * 4 * 16,
    "batch": 4,
    "held_out": 8,
    "check_every": 2,
    "rates": {"codes": 0.2, "scales": 1e-2},
}
WILD = {"rates": {"codes": 1.0, "scales": 0.5}, "schedule": {"warmup": 0.5}, "check_every": 1}
OUTPUTS = {"scope": "blocks", "objective": [{"kind": "outputs"}]}
WIDE = {"scope": {"kind": "blocks", "width": 2}, "objective": [{"kind": "outputs"}]}
CHANGES: list[tuple[str, dict[str, Any], Any]] = [
    ("method", {}, "bitdistiller"),
    ("scope", {}, "blocks"),
    ("scope", OUTPUTS, {"kind": "blocks", "width": 2}),
    ("scope", WIDE, {"kind": "blocks", "width": 2, "stride": 2}),
    ("codes", {}, {"kind": "box"}),
    ("codes", {}, {"kind": "ste", "start": "cell"}),
    ("objective", {}, [{"kind": "logits", "divergence": "reverse"}]),
    ("objective", {}, [{"kind": "logits", "top_k": 4}]),
    ("objective", OUTPUTS, [{"kind": "outputs", "fisher": True}]),
    ("optimizer", {}, {"kind": "sign"}),
    ("optimizer", {}, {"kind": "adam", "beta2": 0.5}),
    ("schedule", {}, {"shape": "constant"}),
    ("schedule", {}, {"warmup": 0.5}),
    ("rates", {}, {"scales": 1e-2}),
    ("rates", {}, {**BASE["rates"], "by_bits": {"2": 0.1}}),
    ("tokens", {}, 4 * 4 * 16),
    ("batch", {}, 2),
    ("held_out", {}, 6),
    ("check_every", {}, 3),
    ("patience", WILD, 1),
    ("precision", {}, "bf16"),
]
"""Field of `distill`, what else is said there, and the field's other value."""


def recipe(**fields: Any) -> ShortRecipe:
    found = parse_recipe(
        {
            "name": "x",
            "model": {"source": "nowhere"},
            "budget": {"bits_per_weight": 4},
            "formats": ["int4-g64"],
            "sensitivity": "fisher",
            **fields,
        },
        "here",
    )
    assert isinstance(found, ShortRecipe)
    return found


def spec_of(**fields: Any) -> Distill:
    short = recipe(distill=BASE | fields)
    assert short.distill is not None
    return refined(short, short.distill)


@cache
def outcome(spec: str) -> Any:
    inputs = {"model": MODEL, "selection": SELECTION, "tokens": TOKENS}
    return distill.run(Distill.model_validate_json(spec), inputs, Env())["selection"].meta["distilled"]


def test_there_is_a_case_for_every_field() -> None:
    assert {field for field, _, _ in CHANGES} | {"text", "recode"} == set(DistillFields.model_fields)


@pytest.mark.parametrize(("field", "also", "value"), CHANGES)
def test_every_field_changes_what_training_does(field: str, also: dict[str, Any], value: Any) -> None:
    before, after = (spec_of(**fields).model_dump_json() for fields in (also, also | {field: value}))
    assert outcome(before) != outcome(after)


@pytest.mark.parametrize(
    ("fields", "nodes"),
    [
        ({}, ["recoded", "distilled"]),
        ({"method": "scales"}, ["recoded", "distilled"]),
        ({"recode": False}, ["distilled"]),
        ({"method": "autoround"}, ["distilled"]),
        ({"method": "autoround", "recode": True}, ["recoded", "distilled"]),
        ({"method": "adaquant", "scope": "stream", "recode": True}, ["recoded", "refined", "distilled"]),
        ({"method": "recode"}, ["recoded"]),
    ],
)
def test_codes_are_chosen_again_where_training_starts_from_them(fields: dict[str, Any], nodes: list[str]) -> None:
    found = expand(recipe(distill=fields)).nodes
    assert [name for name in found if name in ("recoded", "refined", "distilled")] == nodes
    assert found["packed"].inputs["selection"] == nodes[-1]
    if "recoded" in nodes:
        assert found["recoded"].inputs["selection"] == "allocated"
        assert all(found[name].inputs["selection"] == "recoded" for name in nodes[1:])


def test_what_is_said_of_recoding_reaches_it() -> None:
    found = expand(recipe(distill={"recode": {"passes": 7, "windows": 500}, "held_out": 9})).nodes
    spec, tokens = found["recoded"].spec, found["training"].spec
    assert isinstance(spec, Recode) and isinstance(tokens, Tokenize)
    assert (spec.passes, spec.windows, spec.damping) == (7, 500, Recode(step="recode").damping)
    assert spec.held_out == found["distilled"].spec.held_out == 9  # type: ignore[union-attr]
    assert tokens.windows == 500 + 9
    alone = expand(recipe(distill={"method": "recode"})).nodes["training"].spec
    assert isinstance(alone, Tokenize) and alone.windows == spec.model_copy(update={"windows": 96}).windows + 24


@pytest.mark.parametrize("fields", [{"tokens": 1000}, {"rates": {"scales": 1e-3}}, {"recode": False}])
def test_recoding_alone_refuses_what_is_about_training(fields: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="trains nothing"):
        expand(recipe(distill={"method": "recode", **fields}))


def test_a_text_of_its_own_is_what_is_trained_on() -> None:
    nodes = expand(recipe(distill={"text": "mine.jsonl"})).nodes
    assert nodes["training"].inputs["text"] == "training_text" and nodes["training_text"].spec.source == "mine.jsonl"
    assert nodes["distilled"].inputs["tokens"] == "training"
    assert "training_text" not in expand(recipe(distill={})).nodes


@pytest.mark.parametrize(("word", "scope"), [("blocks", Blocks(kind="blocks")), ({"kind": "blocks", "width": 3}, None)])
def test_scope_is_a_word_or_says_how_wide(word: Any, scope: Blocks | None) -> None:
    assert spec_of(method="autoround", scope=word).scope == (scope or Blocks(kind="blocks", width=3))


def test_the_short_and_the_explicit_form_say_the_same() -> None:
    short = recipe(distill=BASE | WIDE | {"codes": {"kind": "box"}, "optimizer": {"kind": "sign"}})
    explicit = expand(short)
    written = {"name": "x", "nodes": {name: _written(node) for name, node in explicit.nodes.items()}}
    assert parse_recipe(written, "here") == explicit


def _written(node: Any) -> dict[str, Any]:
    return {**node.spec.model_dump(mode="json"), "inputs": node.inputs}


def test_a_streamed_refinement_keeps_every_part_but_objective_and_scope() -> None:
    fields = {"method": "adaquant", "scope": "stream", "optimizer": {"kind": "sign"}, "schedule": {"warmup": 0.3}}
    spec = expand(recipe(distill=BASE | fields)).nodes["refined"].spec
    assert isinstance(spec, Reconstruct)
    whole = spec_of(**fields).model_dump()
    assert spec.model_dump() == {name: whole[name] for name in Reconstruct.model_fields if name != "step"} | {
        "step": "reconstruct"
    }


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"scope": "stream"}, "needs the whole model"),
        ({"method": "discquant", "scope": "stream"}, "needs the whole model"),
        ({"method": "autoround", "scope": "stream", "objective": [{"kind": "outputs", "fisher": True}]}, "objective"),
        ({"method": "autoround", "scope": "whole"}, "an `outputs` term needs"),
        ({"objective": [{"kind": "outputs"}]}, "an `outputs` term needs"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        expand(recipe(distill=fields))
