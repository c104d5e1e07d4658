"""A model read through a selection."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models import Watched, tiny_value
from selections import selection_of

from schemas.errors import InputError
from steps.model.overlay import overlay
from steps.quantize.qtensor import from_value
from steps.step import Output


def test_quantized_linears_and_norms_are_the_selections_and_the_rest_is_the_models() -> None:
    model = tiny_value(dtype=torch.bfloat16)
    selection = selection_of(model, "int3-g32-asym")
    norms = Output(tensors={"model.norm.weight": torch.full((32,), 2.0)})
    seen = overlay(model, replace(selection, children={**selection.children, "norms": norms})).tensors
    assert list(seen) == list(model.tensors)
    assert torch.equal(seen["model.norm.weight"], norms.tensors["model.norm.weight"])
    members = {f"{m}.weight": child for child in selection.children.values() for m in child.meta["members"]}
    for name in set(model.tensors) - {"model.norm.weight"}:
        own = model.tensors[name]
        if name in members:
            own = from_value(members[name], name.removesuffix(".weight")).dequantize()
        assert torch.equal(seen[name], own)


def test_nothing_is_read_before_it_is_asked_for() -> None:
    model = tiny_value()
    selection, watched = selection_of(model, "int4-row"), Watched(model.tensors)
    seen = overlay(replace(model, tensors=watched), selection).tensors
    assert "model.embed_tokens.weight" in seen and len(seen) == len(model.tensors)
    assert watched.reads == []
    seen["model.layers.0.mlp.up_proj.weight"]
    seen["model.embed_tokens.weight"]
    assert watched.reads == ["model.embed_tokens.weight"]


def test_tensors_that_the_model_does_not_have_are_refused() -> None:
    model = tiny_value()
    with pytest.raises(InputError, match=r"lm_head\.bias"):
        overlay(model, Output(children={"norms": Output(tensors={"lm_head.bias": torch.ones(97)})}))
