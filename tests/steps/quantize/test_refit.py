"""Scales fitted anew to the codes: the best that can be stored, no row worse, and the loss that is recorded is true."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from linears import hessian, question, weights
from selections import fmt

from schemas.format import Affine
from schemas.quantize import QuantizeUnit, Rounding
from steps.ops.proxy import proxy_loss
from steps.quantize.fits.minmax import minmax
from steps.quantize.qtensor import from_value
from steps.quantize.refit.scales import refit
from steps.quantize.solvers.rtn import rtn
from steps.quantize.unit import run
from steps.step import Env, Output

NAMES = ["int2-g32", "int2-row-sym", "int3-g64-asym", "int4-g64", "int2+4-g32@2.5", "baq2.5-g64", "baq3-row"]


def ask(name: str, inputs: dict[str, Output], **rounding: Any) -> Output:
    return run(QuantizeUnit(format=fmt(name), rounding=Rounding(**rounding)), inputs, Env())["candidates"]


def loss(item: Output) -> float:
    return float(sum(facts["loss"] for facts in item.meta["members"].values()))


def test_the_first_scale_is_the_best_of_all_that_can_be_stored() -> None:
    """Brute force over every positive and negative bfloat16 around it; the others are as they were."""
    W_OI, H_II = weights(1, 64, dtype=torch.float64), hessian(64)
    params = minmax(W_OI, H_II.diagonal(), Affine(bits=2, group_size=32), torch.bfloat16)
    codes_OI = rtn(W_OI, H_II, params, Env()).codes_OI.double()
    found_OG, loss_O = refit(W_OI, H_II, codes_OI, params.scale_OG)
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
    near = every[(every.float().abs() < 10) & (every != 0)].double()
    both_S2 = torch.stack([near, params.scale_OG[0, 1].double().expand(len(near))], dim=1)
    what_SI = codes_OI * both_S2.repeat_interleave(32, dim=1)
    assert float(found_OG[0, 0]) == float(near[proxy_loss(what_SI - W_OI, H_II).argmin()])
    exact_O = proxy_loss(codes_OI * found_OG.double().repeat_interleave(32, dim=1) - W_OI, H_II)
    assert torch.allclose(loss_O, exact_O, rtol=1e-9)
    assert found_OG.dtype == torch.bfloat16


@pytest.mark.parametrize("name", NAMES)
def test_refits_lower_the_loss_and_change_no_size(name: str) -> None:
    inputs = question((48, 128), (16, 128), seed=3)
    none, once, thrice = (ask(name, inputs, refits=times) for times in (0, 1, 3))
    assert loss(thrice) <= loss(once) < loss(none)
    for (key, before), after in zip(none.tensors.items(), thrice.tensors.values(), strict=True):
        assert (before.shape, before.dtype) == (after.shape, after.dtype), key
        if key.endswith("row_loss"):
            assert (after <= before * (1 + 1e-4)).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_recorded_loss_is_that_of_what_is_stored(name: str) -> None:
    inputs = question((48, 128), (16, 128), seed=3)
    H_II, item = inputs["statistics"].tensors["m.hessian"], ask(name, inputs, refits=2)
    for member, facts in item.meta["members"].items():
        D_OI = from_value(item, member).dequantize() - inputs["model"].tensors[f"{member}.weight"].float()
        assert facts["loss"] == pytest.approx(float(proxy_loss(D_OI.double(), H_II.double()).sum()), rel=2e-3)


def test_a_group_of_zeros_keeps_its_scale() -> None:
    W_OI, H_II = weights(4, 64, dtype=torch.float32), hessian(64, dtype=torch.float32)
    W_OI[1] = 0
    params = minmax(W_OI, H_II.diagonal(), Affine(bits=3, group_size=32), torch.bfloat16)
    codes_OI = rtn(W_OI, H_II, params, Env()).codes_OI
    found_OG, loss_O = refit(W_OI, H_II, codes_OI.float(), params.scale_OG)
    assert torch.equal(found_OG[1], params.scale_OG[1]) and loss_O[1] == 0 and (found_OG != 0).all()


def test_without_a_word_affine_scales_are_those_of_the_fit() -> None:
    inputs = question((16, 64))
    assert loss(ask("int2-g32", inputs)) == loss(ask("int2-g32", inputs, refits=0))
