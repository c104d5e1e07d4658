"""Fits, solvers and refits on the grids of llama.cpp's types."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from linears import hessian, question, weights
from selections import fmt

from schemas.errors import InputError
from schemas.format import GgmlType
from schemas.quantize import QuantizeUnit, Rounding
from steps.ops.proxy import proxy_loss
from steps.quantize.fits.ggml import cover
from steps.quantize.fits.ggml import fit as fit_of
from steps.quantize.ggml.kinds import KINDS
from steps.quantize.grids.ggml import GgmlGrid
from steps.quantize.grids.levels import nearest_levels, represented
from steps.quantize.qtensor import from_value
from steps.quantize.refit.ggml import refit
from steps.quantize.solvers.rtn import rtn
from steps.quantize.unit import run
from steps.step import Env, Output

TYPES: list[GgmlType] = list(KINDS)
FINE: list[GgmlType] = ["q8_0", "q6_k", "q5_k", "q4_k", "q3_k", "q2_k", "q5_0", "q4_0", "iq4_nl"]
INPUTS = 512
PLAIN = {"solver": {"kind": "rtn"}, "refits": 0}


def awkward() -> torch.Tensor:
    """Rows of every kind: random, all zero, one weight only, positive only, tiny, large."""
    W_OI = weights(6, INPUTS, dtype=torch.float32)
    W_OI[1] = 0
    W_OI[2] = torch.eye(INPUTS)[17] * -3
    W_OI[3] = W_OI[3].abs() + 1
    W_OI[4] *= 1e-6
    W_OI[5] *= 1e3
    return W_OI


def ask(name: str, inputs: dict[str, Output], **rounding: Any) -> Output:
    """The candidate of one format."""
    spec = QuantizeUnit(format=fmt(name), rounding=Rounding.model_validate(rounding))
    return run(spec, inputs, Env())["candidates"]


@pytest.mark.parametrize("fit", [{"kind": "minmax"}, {"kind": "clip", "points": 5}], ids=lambda f: f["kind"])
@pytest.mark.parametrize("kind", TYPES)
def test_grids_are_safe_and_nearest_levels_are_the_best(kind: GgmlType, fit: dict[str, Any]) -> None:
    """Brute force over all codes: none is closer than the one chosen."""
    W_OI, rounding = awkward(), Rounding.model_validate({"fit": fit})
    grid = fit_of(rounding.fit, W_OI, torch.linspace(0, 2, INPUTS), kind)
    chosen_OI = grid.decode(grid.codes(nearest_levels(W_OI, grid.levels(torch.float32))))
    assert torch.isfinite(chosen_OI).all() and not chosen_OI[1].any()
    error_OI = (chosen_OI - W_OI).abs()
    for code in range(KINDS[kind].levels):
        other_OI = grid.decode(torch.full(W_OI.shape, code, dtype=torch.uint8))
        assert (error_OI <= (other_OI - W_OI).abs() + 1e-6 * W_OI.abs().amax(1, keepdim=True)).all()


@pytest.mark.parametrize("kind", TYPES)
def test_levels_of_the_solver_are_the_decoded_weights(kind: GgmlType) -> None:
    grid = cover(awkward(), kind)
    codes_OI = torch.randint(0, KINDS[kind].levels, (6, INPUTS), generator=torch.Generator().manual_seed(0))
    codes_OI = codes_OI.to(torch.uint8)
    seen_OI = represented(grid.values(codes_OI), grid.levels(torch.float32))
    assert torch.allclose(seen_OI, grid.decode(codes_OI), rtol=0, atol=1e-25)


@pytest.mark.parametrize("kind", TYPES)
def test_a_refit_changes_no_code_and_is_never_worse(kind: GgmlType) -> None:
    W_OI, H_II = awkward(), hessian(INPUTS, dtype=torch.float32)
    grid = cover(W_OI, kind)
    solved = rtn(W_OI, H_II, grid, Env())
    found, loss_O = refit(W_OI, H_II, solved.codes_OI, grid)
    assert torch.allclose(loss_O, proxy_loss(found.decode(solved.codes_OI) - W_OI, H_II), rtol=1e-3, atol=1e-12)
    assert (loss_O <= solved.loss_O * (1 + 1e-4) + 1e-12).all()
    assert kind == "q8_0" or loss_O[0] < solved.loss_O[0]
    for name in ("d_OS", "scale_OG", "min_OG", "dmin_OS"):
        before, after = getattr(grid, name), getattr(found, name)
        assert (before is None) == (after is None) and (before is None or before.dtype == after.dtype)


def test_a_refitted_integer_is_the_best_of_all() -> None:
    """One group's scale of a q2_k row, the rest as it is: brute force over the 16 integers it can be."""
    W_OI, H_II = weights(1, 256, dtype=torch.float64), hessian(256)
    grid = cover(W_OI, "q2_k")
    codes_OI = rtn(W_OI, H_II, grid, Env()).codes_OI
    found, _ = refit(W_OI, H_II, codes_OI, grid)
    assert grid.scale_OG is not None and found.scale_OG is not None

    def loss(integer: int) -> float:
        scale_OG = grid.scale_OG.clone()  # type: ignore[union-attr]
        scale_OG[0, 0] = integer
        other = GgmlGrid("q2_k", grid.d_OS, scale_OG, grid.min_OG, grid.dmin_OS)
        return float(proxy_loss(other.decode(codes_OI).double() - W_OI, H_II))

    assert int(found.scale_OG[0, 0]) == min(range(16), key=loss), "it is the first number that is visited"


@pytest.mark.parametrize("kind", FINE)
def test_feedback_and_refits_each_lower_the_loss(kind: GgmlType) -> None:
    inputs = question((48, INPUTS), (16, INPUTS), seed=3)
    losses = []
    for rounding in (PLAIN, {"refits": 0}, {"refits": 1}, {"refits": 3}):
        item = ask(kind, inputs, **rounding)
        losses.append(sum(m["loss"] for m in item.meta["members"].values()))
    plain, solved, once, thrice = losses
    assert solved < 0.6 * plain and thrice <= once <= solved and (once < solved or kind == "q8_0")


@pytest.mark.parametrize("name", [*TYPES, "f16"])
def test_an_item_says_what_it_holds(name: str) -> None:
    inputs = question((8, INPUTS), (4, INPUTS))
    item = ask(name, inputs)
    for member, facts in item.meta["members"].items():
        q, W_OI = from_value(item, member), inputs["model"].tensors[f"{member}.weight"].float()
        assert q.format.name == name and q.shape == tuple(facts["shape"]) == tuple(W_OI.shape)
        H_II = inputs["statistics"].tensors["m.hessian"].double()
        exact_O = proxy_loss((q.dequantize() - W_OI).double(), H_II)
        assert facts["loss"] == pytest.approx(float(exact_O.sum()), rel=2e-3, abs=1e-9)
        row_loss = item.tensors[f"{member}.row_loss"]
        assert row_loss.dtype == torch.float32
        torch.testing.assert_close(row_loss.double(), exact_O, rtol=1e-2, atol=1e-6)


def test_a_dead_or_empty_layer_is_safe() -> None:
    H_II = hessian(256, dtype=torch.float32)
    H_II[5], H_II[:, 5] = 0, 0
    for kind in TYPES:
        item = ask(kind, question((4, 256), (4, 256), hessian=H_II, m1=torch.zeros(4, 256)))
        assert not from_value(item, "model.layers.3.m1").dequantize().any()


def test_superblocks_that_do_not_divide_the_row_are_refused_with_what_fits() -> None:
    with pytest.raises(InputError) as caught:
        ask("q4_k", question((8, 96)))
    message = str(caught.value)
    assert "rows of 96 weights, groups of 256" in message and "q4_k does not fit" in message
    assert "q4_0, iq4_nl" in message
