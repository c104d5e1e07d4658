"""Which passes of a training run in bf16, and which never do."""

from __future__ import annotations

import pytest
import torch
from models import tiny_tokens, tiny_value
from selections import selection_of

from schemas.distill import Distill
from steps.distill import run as distill
from steps.model.stream import Stream
from steps.step import Env, Output

SPEC = {"step": "distill", "tokens": 8 * 8 * 16, "batch": 8, "held_out": 16, "check_every": 4}
RATES = {"codes": 1e-2, "scales": 0.01, "norms": 0.01}


def trained(**settings: str) -> Output:
    spec = Distill.model_validate({**SPEC, "rates": RATES, **settings})
    model = tiny_value()
    inputs = {"model": model, "selection": selection_of(model, "int2-g32"), "tokens": tiny_tokens(80, 16)}
    return distill.run(spec, inputs, Env())["selection"]


def test_bf16_trains_and_is_judged_in_fp32() -> None:
    half, single = trained(precision="bf16").meta["distilled"], trained(precision="fp32").meta["distilled"]
    assert (half["precision"], single["precision"]) == ("bf16", "fp32")
    assert half["before"] == single["before"]  # checks never run in bf16
    assert half["after"] < 0.95 * half["before"]
    assert half["after"] != single["after"] and half["after"] == pytest.approx(single["after"], rel=0.05)


def test_auto_is_fp32_without_a_gpu() -> None:
    assert trained().meta["distilled"] == trained(precision="fp32").meta["distilled"]


def test_logits_are_fp32_within_autocast() -> None:
    stream = Stream(tiny_value())
    hidden_PD = torch.randn(5, stream.config.hidden_size, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        inside_PV = stream.logits(hidden_PD)
        assert torch.nn.functional.linear(hidden_PD, stream.head_VD).dtype == torch.bfloat16
    assert torch.equal(inside_PV, stream.logits(hidden_PD))
