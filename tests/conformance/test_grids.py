"""Every grid that can be said, with every fit that can be said."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linears import FORMATS, kind_of, one_of_each, weights

from schemas.format import Format
from schemas.quantize import Fit
from steps.quantize.build import build_fit
from steps.quantize.grids.affine import GridParams, bits, code_dtype, code_range, decode, nearest
from steps.quantize.qtensor import from_value, item_meta
from steps.quantize.tensors.affine import AffineTensor
from steps.step import Output

FITS = one_of_each(Fit)
INPUTS = 256
GRIDS = [pytest.param(form, fit, id=f"{form.name}-{kind_of(fit)}") for form in FORMATS for fit in FITS]


def fitted(form: Format, fit: Any, W_OI: torch.Tensor, dtype: torch.dtype = torch.bfloat16) -> GridParams:
    """The grid of a fit, with uneven importance."""
    return build_fit(fit)(W_OI, torch.linspace(0, 2, W_OI.shape[1]), form, dtype)


def awkward(outputs: int = 6) -> torch.Tensor:
    """Rows of every kind: random, all zero, one weight only, positive only, tiny, huge."""
    W_OI = weights(outputs, INPUTS, dtype=torch.float32)
    W_OI[1] = 0
    W_OI[2] = torch.eye(INPUTS)[17] * -3
    W_OI[3] = W_OI[3].abs() + 1
    W_OI[4] *= 1e-6
    W_OI[5] *= 1e3
    return W_OI


@pytest.mark.parametrize(("form", "fit"), GRIDS)
def test_codes_are_in_range_and_nearest_is_idempotent(form: Format, fit: Any) -> None:
    W_OI = awkward()
    for dtype in (torch.bfloat16, torch.float16):
        params = fitted(form, fit, W_OI, dtype)
        codes_OI = nearest(W_OI, params)
        low, high = code_range(form)
        assert codes_OI.dtype == code_dtype(form) and low <= codes_OI.min() and codes_OI.max() <= high
        what_OI = decode(codes_OI, params.scale_OG, params.zero_point_OG)
        assert torch.isfinite(what_OI).all() and torch.equal(nearest(what_OI, params), codes_OI)
        assert not what_OI[1].any(), "zero is a level of every grid"


@pytest.mark.parametrize(("form", "fit"), GRIDS)
def test_parameters_are_stored_ones(form: Format, fit: Any) -> None:
    params = fitted(form, fit, awkward())
    assert params.scale_OG.dtype == torch.bfloat16 and params.scale_OG.shape[1] == INPUTS // form.columns(INPUTS)
    assert (params.scale_OG != 0).all() and torch.isfinite(params.scale_OG).all()
    assert form.symmetry == "signed" or (params.scale_OG > 0).all()
    assert (params.zero_point_OG is None) == (form.symmetry != "asymmetric")
    if params.zero_point_OG is not None:
        assert params.zero_point_OG.dtype == torch.uint8 and int(params.zero_point_OG.max()) < 2**form.bits


@pytest.mark.parametrize("form", FORMATS, ids=lambda f: f.name)
def test_nearest_is_the_best_of_all_levels(form: Format) -> None:
    """Brute force over the whole grid: no level is closer."""
    W_OI = weights(3, INPUTS, dtype=torch.float32)
    params = fitted(form, FITS[0], W_OI)
    low, high = code_range(form)
    chosen_OI = (decode(nearest(W_OI, params), params.scale_OG, params.zero_point_OG) - W_OI).abs()
    for code in range(low, high + 1):
        codes_OI = torch.full_like(nearest(W_OI, params), code)
        level_OI = decode(codes_OI, params.scale_OG, params.zero_point_OG)
        assert (chosen_OI <= (level_OI - W_OI).abs() + 1e-6).all()


@pytest.mark.parametrize("form", FORMATS, ids=lambda f: f.name)
def test_bits_match_bytes_and_packing_is_exact(form: Format) -> None:
    W_OI = weights(16, INPUTS, dtype=torch.float32)
    params = fitted(form, FITS[0], W_OI)
    q = AffineTensor("m", form, nearest(W_OI, params), params.scale_OG, params.zero_point_OG)
    assert bits(params, INPUTS) == 8 * q.nbytes()
    item = Output(item_meta("u", form, {"m": {"shape": list(q.shape)}}), q.to_tensors())
    packed = item.tensors["m.codes"]
    assert packed.dtype == torch.uint8 and packed.numel() * 8 == W_OI.numel() * form.bits
    back = from_value(item, "m")
    assert torch.equal(back.codes_OI, q.codes_OI) and back.codes_OI.dtype == q.codes_OI.dtype
    assert torch.equal(back.dequantize(), q.dequantize())


@pytest.mark.parametrize("form", FORMATS, ids=lambda f: f.name)
def test_dequantize_is_the_formula(form: Format) -> None:
    """Against the sentence in the schema, one weight at a time, in exact arithmetic."""
    W_OI = weights(2, INPUTS, dtype=torch.float32)
    params = fitted(form, FITS[0], W_OI)
    q = AffineTensor("m", form, nearest(W_OI, params), params.scale_OG, params.zero_point_OG)
    what_OI, group = q.dequantize(), form.columns(INPUTS)
    for o, i in ((0, 0), (0, group - 1), (1, INPUTS - group), (1, INPUTS - 1)):
        zero = 0 if params.zero_point_OG is None else int(params.zero_point_OG[o, i // group])
        assert float(what_OI[o, i]) == float(params.scale_OG[o, i // group]) * (int(q.codes_OI[o, i]) - zero)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([f for f in FORMATS if f.group_size in (32, "row")]),
    st.lists(st.floats(-60000, 60000, width=32), min_size=64, max_size=64),
)
def test_any_finite_weights_are_safe(form: Format, values: list[float]) -> None:
    W_OI = torch.tensor(values).view(1, 64)
    for fit in FITS:
        params = fitted(form, fit, W_OI)
        what_OI = decode(nearest(W_OI, params), params.scale_OG, params.zero_point_OG)
        assert torch.isfinite(what_OI).all()
        assert (what_OI - W_OI).abs().max() <= 2 * W_OI.abs().max()
