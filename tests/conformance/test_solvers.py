"""Every solver that can be said, on every kind of grid."""

from __future__ import annotations

from itertools import cycle, product
from typing import Any, get_args

import pytest
import torch
from linears import hessian, kind_of, one_of_each, proxy, weights

from schemas.format import Affine, Bits, Format, GroupSize, Symmetry
from schemas.quantize import Fit, Solver
from steps.quantize.build import build_fit, build_solver
from steps.quantize.grids.affine import GridParams, code_dtype, code_range, decode, nearest
from steps.step import Env

SOLVERS = one_of_each(Solver)
INPUTS = 128
GROUPS = cycle(get_args(GroupSize))
"""Every group size meets every kind of symmetry, without the whole product."""
FORMS = [
    Affine(bits=b, group_size=g, symmetry=s)
    for (b, s), g in zip(product(get_args(Bits), get_args(Symmetry)), GROUPS, strict=False)
]
CASES = [pytest.param(s, f, id=f"{kind_of(s)}-{f.name}") for s in SOLVERS for f in FORMS]


def grid(W_OI: torch.Tensor, form: Format, fit: Any = None) -> GridParams:
    """Min-max, unless a fit is given."""
    part = build_fit(fit or one_of_each(Fit)[0])
    return part(W_OI, torch.ones(W_OI.shape[1]), form, torch.bfloat16)


@pytest.mark.parametrize(("solver", "form"), CASES)
def test_a_diagonal_hessian_gives_the_nearest_codes(solver: Any, form: Format) -> None:
    """Exact: without correlations there is nothing to feed forward; dead inputs included."""
    W_OI = weights(16, INPUTS, dtype=torch.float32)
    params = grid(W_OI, form)
    uneven_I = torch.logspace(-3, 3, INPUTS)
    uneven_I[::7] = 0
    for H_II in (torch.eye(INPUTS), torch.diag(uneven_I), torch.zeros(INPUTS, INPUTS)):
        solved = build_solver(solver)(W_OI, H_II, params, Env())
        assert torch.equal(solved.codes_OI, nearest(W_OI, params))


@pytest.mark.parametrize(("solver", "form"), CASES)
def test_the_reported_loss_is_the_proxy_loss_of_the_codes(solver: Any, form: Format) -> None:
    """fp64: the identity to 1e-9; fp32, as in production: to 1e-3, with fewer samples than inputs too."""
    W_OI = weights(16, INPUTS)
    params = grid(W_OI, form)
    few_TI = torch.randn(INPUTS // 2, INPUTS, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for H_II in (hessian(INPUTS), few_TI.T @ few_TI / INPUTS):
        for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-3)):
            solved = build_solver(solver)(W_OI.to(dtype), H_II, params, Env())
            expected = proxy(W_OI, H_II, solved.codes_OI, params)
            assert float(solved.loss_O.sum()) == pytest.approx(expected, rel=tolerance)
            assert float(solved.solver_loss_O.sum()) >= expected * (1 - tolerance), "damping only adds"


@pytest.mark.parametrize(("solver", "form"), CASES)
def test_codes_are_codes_of_the_grid_and_come_out_the_same_again(solver: Any, form: Format) -> None:
    W_OI, H_II = weights(16, INPUTS, dtype=torch.float32), hessian(INPUTS, dtype=torch.float32)
    params = grid(W_OI, form)
    solved = build_solver(solver)(W_OI, H_II, params, Env())
    low, high = code_range(form)
    assert solved.codes_OI.dtype == code_dtype(form) and solved.codes_OI.shape == W_OI.shape
    assert low <= solved.codes_OI.min() and solved.codes_OI.max() <= high
    again = build_solver(solver)(W_OI.clone(), H_II.clone(), params, Env())
    assert torch.equal(again.codes_OI, solved.codes_OI) and torch.equal(again.loss_O, solved.loss_O)


@pytest.mark.parametrize(("solver", "form"), CASES)
def test_weights_on_the_grid_stay_where_they_are(solver: Any, form: Format) -> None:
    W_OI = weights(16, INPUTS, dtype=torch.float32)
    params = grid(W_OI, form)
    codes_OI = nearest(W_OI, params)
    on_grid_OI = decode(codes_OI, params.scale_OG, params.zero_point_OG)
    solved = build_solver(solver)(on_grid_OI, hessian(INPUTS, dtype=torch.float32), params, Env())
    assert torch.equal(solved.codes_OI, codes_OI) and not solved.loss_O.any() and not solved.solver_loss_O.any()


@pytest.mark.parametrize(("solver", "form"), CASES)
def test_rows_do_not_influence_each_other(solver: Any, form: Format) -> None:
    """Exact in fp64: stacking the members of a unit changes nothing."""
    W_OI, H_II = weights(24, INPUTS), hessian(INPUTS)
    params = grid(W_OI, form)
    whole = build_solver(solver)(W_OI, H_II, params, Env())
    for start, stop in ((0, 1), (1, 17), (17, 24)):
        part = build_solver(solver)(W_OI[start:stop], H_II, params.rows(start, stop), Env())
        assert torch.equal(part.codes_OI, whole.codes_OI[start:stop])


@pytest.mark.parametrize("solver", SOLVERS, ids=kind_of)
def test_nothing_lent_is_changed(solver: Any) -> None:
    W_OI, H_II = weights(8, INPUTS, dtype=torch.float32), hessian(INPUTS, dtype=torch.float32)
    params = grid(W_OI, FORMS[0])
    held = [t.clone() for t in (W_OI, H_II, params.scale_OG)]
    build_solver(solver)(W_OI, H_II, params, Env())
    assert all(torch.equal(a, b) for a, b in zip(held, (W_OI, H_II, params.scale_OG), strict=True))


@pytest.mark.parametrize("solver", SOLVERS, ids=kind_of)
@pytest.mark.parametrize("symmetry", get_args(Symmetry))
def test_more_bits_lose_less(solver: Any, symmetry: Symmetry) -> None:
    W_OI, H_II = weights(32, INPUTS), hessian(INPUTS)
    losses = []
    for bits in get_args(Bits):
        params = grid(W_OI, Affine(bits=bits, group_size=64, symmetry=symmetry))
        losses.append(float(build_solver(solver)(W_OI, H_II, params, Env()).loss_O.sum()))
    assert losses == sorted(losses, reverse=True)
