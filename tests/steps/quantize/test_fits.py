"""How scales are chosen."""

from __future__ import annotations

import pytest
import torch
from linears import hessian, weights
from selections import fmt

from schemas.quantize import ClipSearch, Feedback
from steps.quantize.fits.clip import clip, weighted_error
from steps.quantize.fits.minmax import minmax
from steps.quantize.grids.affine import GridParams, decode, nearest, stored_scale
from steps.quantize.scale_dtype import scale_dtype
from steps.quantize.solvers.feedback import feedback
from steps.quantize.solvers.rtn import rtn
from steps.step import Env

SUFFIXES = ("", "-sym", "-asym")
IMPORTANCE = torch.logspace(-2, 2, 128)


def plain(W_OI: torch.Tensor, name: str) -> GridParams:
    """Min-max."""
    return minmax(W_OI, IMPORTANCE, fmt(name), torch.bfloat16)


def searched(W_OI: torch.Tensor, name: str, **spec: object) -> GridParams:
    """Clip search."""
    return clip(ClipSearch.model_validate({"kind": "clip", **spec}), W_OI, IMPORTANCE, fmt(name), torch.bfloat16)


def error(W_OI: torch.Tensor, params: GridParams, weight_I: torch.Tensor) -> torch.Tensor:
    """Weighted squared rounding error by group, through the public functions."""
    D_OI = decode(nearest(W_OI, params), params.scale_OG, params.zero_point_OG) - W_OI
    return (D_OI.square() * weight_I).view(*params.scale_OG.shape, -1).sum(-1)


def test_signed_scale_puts_the_extreme_and_zero_on_the_grid() -> None:
    """Powers of two, so that nothing is rounded: scale = -w_e / 2^(b-1), whichever sign w_e has; ties positive."""
    W_OI = torch.tensor([[4.0, -1, 0, 2], [-4, 1, 0, -2], [4, -4, 0, 1]]).repeat(1, 8)
    params = plain(W_OI, "int3-g32")
    assert params.scale_OG.flatten().tolist() == [-1, 1, 1]
    what_OI = decode(nearest(W_OI, params), params.scale_OG, None)
    assert torch.equal(what_OI[:2], W_OI[:2]) and what_OI[2, :4].tolist() == [3, -4, 0, 1]


def test_symmetric_and_asymmetric_scales_are_the_formulas() -> None:
    W_OI = torch.tensor([[3.5, -1, 0.5, 2] * 8, [1.0, 2, 3, 3.5] * 8, [-1.0, -2, -3.5, -1] * 8])
    assert plain(W_OI, "int3-g32-sym").scale_OG.flatten().tolist() == [1, 1, 1]
    params = plain(W_OI, "int3-g32-asym")
    assert params.scale_OG.flatten().tolist() == [float(torch.tensor(4.5 / 7).bfloat16()), 0.5, 0.5]
    assert params.zero_point_OG is not None and params.zero_point_OG.flatten().tolist() == [2, 0, 7]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_clip_search_is_never_worse_than_minmax_in_its_own_error(bits: int, suffix: str) -> None:
    """A theorem: min-max is its first candidate. Group by group, weighted or not."""
    W_OI, name = weights(16, 128, dtype=torch.float32), f"int{bits}-g32{suffix}"
    for weighted, weight_I in ((True, IMPORTANCE), (False, torch.ones(128))):
        before_OG = error(W_OI, plain(W_OI, name), weight_I)
        after_OG = error(W_OI, searched(W_OI, name, weighted=weighted), weight_I)
        assert (after_OG <= before_OG * (1 + 1e-6)).all()
        assert bits > 4 or after_OG.sum() < 0.99 * before_OG.sum()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_clip_search_finds_the_best_of_its_candidates(suffix: str) -> None:
    """Brute force: every ratio and, for signed grids, both signs; no group has a better one."""
    W_OI, name = weights(8, 128, dtype=torch.float32), f"int3-g64{suffix}"
    best_OG = error(W_OI, searched(W_OI, name, points=5, floor=0.6), IMPORTANCE)
    for ratio in (1, 0.9, 0.8, 0.7, 0.6):
        params = plain(W_OI * ratio, name)
        turned = [GridParams(params.format, -params.scale_OG)] if not suffix else []
        for candidate in (params, *turned):
            assert (best_OG <= error(W_OI, candidate, IMPORTANCE) * (1 + 1e-5)).all()


def test_the_error_of_the_search_is_that_of_the_grid() -> None:
    W_OI = weights(8, 128, dtype=torch.float32)
    for suffix in SUFFIXES:
        params = plain(W_OI, f"int3-g32{suffix}")
        found_OG = weighted_error(W_OI.view(8, 4, 32), IMPORTANCE.view(4, 32), params)
        torch.testing.assert_close(found_OG, error(W_OI, params, IMPORTANCE))


def test_importance_moves_the_clipping() -> None:
    """One input matters, the largest: it is kept; without it, clipped."""
    W_OI = weights(1, 32, dtype=torch.float32).clamp(-2, 2)
    W_OI[0, 5] = 6.0
    only_I = torch.full((32,), 1e-6)
    only_I[5] = 1.0
    spec = ClipSearch(kind="clip")
    kept = clip(spec, W_OI, only_I, fmt("int4-row"), torch.bfloat16)
    cut = clip(spec, W_OI, 1 - only_I, fmt("int4-row"), torch.bfloat16)
    assert error(W_OI, kept, only_I) < error(W_OI, cut, only_I)
    assert error(W_OI, kept, 1 - only_I) > error(W_OI, cut, 1 - only_I)


@pytest.mark.parametrize("bits", [2, 3])
def test_signed_is_at_least_as_good_as_asymmetric_at_fewer_bytes(bits: int) -> None:
    """Not a theorem: the ordering that the default format rests on, summed over seeds, with the feedback solver."""
    total = {}
    for suffix in ("", "-asym"):
        losses = []
        for seed in range(4):
            W_OI, H_II = weights(64, 128, seed, torch.float32), hessian(128, seed, dtype=torch.float32)
            params = plain(W_OI, f"int{bits}-g64{suffix}")
            losses.append(float(feedback(Feedback(kind="feedback"), W_OI, H_II, params, Env()).loss_O.sum()))
        total[suffix] = sum(losses)
    assert total[""] <= total["-asym"] * 1.01


def test_clip_search_helps_the_nearest_codes_where_the_hessian_is_diagonal() -> None:
    """There its error is the loss itself, so never worse is a theorem."""
    W_OI = weights(16, 128, dtype=torch.float32)
    for suffix in SUFFIXES:
        loss = [
            float(rtn(W_OI, torch.diag(IMPORTANCE), params, Env()).loss_O.sum())
            for params in (searched(W_OI, f"int3-g32{suffix}"), plain(W_OI, f"int3-g32{suffix}"))
        ]
        assert loss[0] <= loss[1]


def test_scales_are_rounded_before_anything_depends_on_them() -> None:
    exact = torch.tensor([1 / 3, 1e-40, 0.0, -0.0, -1e-9])
    assert stored_scale(exact, torch.float16).tolist()[1:] == [1, 1, 1, 1]
    assert stored_scale(exact, torch.bfloat16)[0] == torch.tensor(1 / 3).bfloat16()
    assert stored_scale(exact, torch.bfloat16)[4] < 0


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, torch.bfloat16),
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"dtype": "float32"}, torch.bfloat16),
        ({"dtype": "float16"}, torch.float16),
        ({"torch_dtype": "float16"}, torch.float16),
        ({"dtype": None, "torch_dtype": "torch.float16"}, torch.float16),
    ],
)
def test_scale_dtype(config: dict[str, str], expected: torch.dtype) -> None:
    assert scale_dtype(config) == expected
