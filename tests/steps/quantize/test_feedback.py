"""The feedback solver against its definition, its theory, and the mistakes that still run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from linears import hessian, one_column, proxy, update_form, upper_factor_of_inverse, weights
from selections import fmt

from schemas.quantize import Feedback
from steps.ops.cholesky import PANEL, FactorError, cholesky_, unit_upper_factor_
from steps.quantize.fits.minmax import minmax
from steps.quantize.grids.affine import GridParams
from steps.quantize.solvers.factor import factor
from steps.quantize.solvers.feedback import SUB_BLOCK, feedback
from steps.quantize.solvers.rtn import rtn
from steps.quantize.solvers.solved import Solved
from steps.step import Env

INPUTS = 96
FORMATS = ("int2-g32", "int3-g32-asym", "int4-row-sym")


def grid(W_OI: torch.Tensor, name: str = "int3-g32") -> GridParams:
    """The min-max grid of a format."""
    return minmax(W_OI, torch.ones(W_OI.shape[1]), fmt(name), torch.bfloat16)


def solve(W_OI: torch.Tensor, H_II: torch.Tensor, params: GridParams, env: Env | None = None, **spec: object) -> Solved:
    """The solver with some options."""
    return feedback(Feedback.model_validate({"kind": "feedback", **spec}), W_OI, H_II, params, env or Env())


def damped(H_II: torch.Tensor, order: list[int], damping: float = 0.01) -> torch.Tensor:
    """The Hessian that the solver minimises, in rounding order."""
    return H_II[order][:, order] + damping * H_II.diagonal().mean() * torch.eye(len(H_II), dtype=H_II.dtype)


def falling(H_II: torch.Tensor) -> list[int]:
    """Inputs by falling Hessian diagonal."""
    return [int(i) for i in torch.argsort(H_II.diagonal(), descending=True)]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("act_order", [False, True])
def test_feedback_form_equals_update_form(name: str, act_order: bool) -> None:
    """The same codes in fp64 as GPTQ's paper gives through the inverse; with act-order, permuted and put back."""
    W_OI, H_II = weights(12, INPUTS), hessian(INPUTS)
    params, order = grid(W_OI, name), falling(H_II) if act_order else list(range(INPUTS))
    expected = update_form(W_OI, upper_factor_of_inverse(damped(H_II, order)), order, params)
    assert torch.equal(solve(W_OI, H_II, params, act_order=act_order).codes_OI, expected)


def test_rows_of_the_dense_inverse_are_not_the_factor() -> None:
    """Negative control: the classical bug runs, and even beats rounding to nearest, but only equality catches it."""
    W_OI, H_II = weights(64, INPUTS), hessian(INPUTS)
    params, order = grid(W_OI, "int2-g32"), list(range(INPUTS))
    inverse_II = torch.linalg.inv(damped(H_II, order))
    wrong = proxy(W_OI, H_II, update_form(W_OI, inverse_II, order, params), params)
    right = float(solve(W_OI, H_II, params, act_order=False).loss_O.sum())
    nearest = float(rtn(W_OI, H_II, params, Env()).loss_O.sum())
    assert right < wrong < nearest


@pytest.mark.parametrize("name", FORMATS)
def test_lazy_blocks_equal_no_blocks(name: str) -> None:
    """Codes equal in fp64 at every blocking, edges that are no multiple of anything included."""
    W_OI, H_II = weights(12, INPUTS), hessian(INPUTS)
    params = grid(W_OI, name)
    whole = solve(W_OI, H_II, params, block_size=1)
    for size in (7, SUB_BLOCK, 33, 4096):
        lazy = solve(W_OI, H_II, params, block_size=size)
        assert torch.equal(lazy.codes_OI, whole.codes_OI)
        torch.testing.assert_close(lazy.solver_loss_O, whole.solver_loss_O, rtol=1e-10, atol=0)


def test_the_loss_identity_holds_whatever_is_rounded_to() -> None:
    """1/2 tr(D H D^T) = 1/2 sum_k D_k ||t_k - what_k||^2; targets by definition, what from a clamped grid, or noise."""
    W_OI, H_II = weights(5, 64), hessian(64)
    params = grid(W_OI, "int2-g32")
    M_II, D_I = unit_upper_factor_(H_II.flip(0, 1), torch.float64)
    noise_OI = torch.randn(5, 64, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    for rounding in (lambda t_OI, k: one_column(t_OI, k, params)[1], lambda t_OI, k: noise_OI[:, k]):
        what_OI, sum_of_steps = torch.zeros_like(W_OI), 0.0
        for k in range(64):
            target_OI = W_OI + (W_OI - what_OI)[:, :k] @ M_II[:k]
            what_OI[:, k] = rounding(target_OI, k)
            sum_of_steps += float(D_I[k] * (target_OI - what_OI)[:, k].square().sum()) / 2
        error_OI = what_OI - W_OI
        assert sum_of_steps == pytest.approx(float(torch.trace(error_OI @ H_II @ error_OI.T)) / 2, rel=1e-12)


def test_the_gain_over_nearest_is_tr_d_over_tr_h() -> None:
    """QuIP's theory on an unclamped grid of step s: m s^2 / 24 times tr H for nearest, times tr D with feedback."""
    W_OI, H_II = weights(2048, 64), hessian(64)
    step = 1 / 16
    params = GridParams(fmt("int8-row"), torch.full((2048, 1), step, dtype=torch.bfloat16))
    unit = 2048 * step**2 / 24
    solved = solve(W_OI, H_II, params, act_order=False)
    _, D_I = unit_upper_factor_(damped(H_II, list(range(64))).flip(0, 1), torch.float64)
    assert solved.codes_OI.abs().max() < 127, "not clamped"
    assert float(rtn(W_OI, H_II, params, Env()).loss_O.sum()) == pytest.approx(unit * float(H_II.trace()), rel=0.03)
    assert float(solved.solver_loss_O.sum()) == pytest.approx(unit * float(D_I.sum()), rel=0.03)
    assert float(D_I.sum()) < 0.5 * float(H_II.trace())


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_feedback_beats_nearest(bits: int, seed: int) -> None:
    """Not a theorem on a clamped grid; with correlated inputs it is far from close."""
    W_OI, H_II = weights(48, INPUTS, seed), hessian(INPUTS, seed)
    for suffix in ("", "-sym", "-asym"):
        params = grid(W_OI, f"int{bits}-g32{suffix}")
        nearest = float(rtn(W_OI, H_II, params, Env()).loss_O.sum())
        assert float(solve(W_OI, H_II, params).loss_O.sum()) < 0.6 * nearest


def test_fp32_is_as_good_as_fp64() -> None:
    W_OI, H_II = weights(64, INPUTS), hessian(INPUTS, dtype=torch.float32)
    params = grid(W_OI)
    wide, narrow = solve(W_OI, H_II, params), solve(W_OI.float(), H_II, params)
    assert float(narrow.loss_O.sum()) == pytest.approx(float(wide.loss_O.sum()), rel=1e-2)
    assert float((narrow.codes_OI != wide.codes_OI).double().mean()) < 1e-3


def test_one_factor_serves_all_formats_and_bits() -> None:
    env, W_OI, H_II = Env(), weights(4, INPUTS), hessian(INPUTS)
    solve(W_OI, H_II, grid(W_OI, "int2-g32"), env)
    first = env.memo["feedback_factor"][1]
    solve(W_OI[:2], H_II.clone(), grid(W_OI[:2], "int8-row-asym"), env)
    assert env.memo["feedback_factor"][1] is first
    for changed in ({"damping": 0.02}, {"act_order": False}, {"retries": 1}):
        solve(W_OI, H_II, grid(W_OI), env, **changed)
        assert env.memo["feedback_factor"][1] is not first
    fresh = solve(W_OI, 2 * H_II, grid(W_OI), env)
    assert torch.equal(fresh.codes_OI, solve(W_OI, 2 * H_II, grid(W_OI)).codes_OI)


def test_dead_inputs_leave_the_others_alone() -> None:
    """Their weights are rounded to nearest; the rest is solved as if they were not there."""
    W_OI, H_II = weights(8, INPUTS), hessian(INPUTS)
    alive = [i for i in range(INPUTS) if i not in (3, 50, 51)]
    H_II[[3, 50, 51]] = 0
    H_II[:, [3, 50, 51]] = 0
    params = GridParams(fmt("int3-row"), grid(W_OI, "int3-row").scale_OG)
    solved, without = solve(W_OI, H_II, params), solve(W_OI[:, alive], H_II[alive][:, alive], params)
    assert (solved.dead, without.dead) == (3, 0)
    assert torch.equal(solved.codes_OI[:, alive], without.codes_OI)
    torch.testing.assert_close(solved.loss_O, without.loss_O, rtol=1e-9, atol=0)
    assert torch.equal(solved.codes_OI, solve(W_OI, 1000 * H_II, params).codes_OI), "the unit of H does not matter"


def test_damping_grows_until_the_factorisation_holds_and_is_reported() -> None:
    """An eigenvalue of -0.05 mean diagonals: .01 fails, .1 holds."""
    W_OI, H_II = weights(4, INPUTS), torch.eye(INPUTS, dtype=torch.float64)
    H_II[0, 1] = H_II[1, 0] = 1.05
    params = grid(W_OI)
    assert solve(W_OI, H_II, params).damping == pytest.approx(0.1)
    assert solve(W_OI, torch.eye(INPUTS), params).damping == 0.01
    with pytest.raises(FactorError, match=r"damping up to 0\.01 "):
        solve(W_OI, H_II, params, retries=0)
    with pytest.raises(FactorError, match=r"damping up to 1 "):
        solve(W_OI, -H_II, params)


def test_the_factor_is_what_it_says() -> None:
    H_II = hessian(300)
    found = factor(Feedback(kind="feedback"), H_II, torch.float64)
    assert torch.equal(found.order_I[found.inverse_I], torch.arange(300))
    assert (H_II.diagonal()[found.order_I].diff() <= 0).all()
    assert torch.equal(found.M_II, found.M_II.triu()) and (found.M_II.diagonal() == 1).all() and (found.D_I > 0).all()
    rebuilt_II = found.M_II * found.D_I @ found.M_II.T
    torch.testing.assert_close(rebuilt_II, damped(H_II, found.order_I.tolist()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", [1, PANEL - 1, PANEL, PANEL + 1, 2 * PANEL + 3])
def test_cholesky_equals_lapack(order: int) -> None:
    A_II = hessian(order) + torch.eye(order, dtype=torch.float64)
    torch.testing.assert_close(cholesky_(A_II.clone()), torch.linalg.cholesky(A_II), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("broken", [0, PANEL + 5])
def test_cholesky_refuses_what_is_not_definite(broken: int) -> None:
    A_II = torch.eye(2 * PANEL, dtype=torch.float64)
    A_II[broken, broken] = -1
    with pytest.raises(FactorError, match=f"order {broken + 1}$"):
        cholesky_(A_II.clone())
    A_II[broken, broken] = torch.nan
    with pytest.raises(FactorError):
        cholesky_(A_II)


def test_bits_do_not_depend_on_the_number_of_threads(threads: Callable[[int], None]) -> None:
    W_OI, H_II = weights(300, 300, dtype=torch.float32), hessian(300, dtype=torch.float32)
    params = grid(W_OI, "int3-row")
    found = []
    for count in (1, 2):
        threads(count)
        found.append((solve(W_OI, H_II, params), factor(Feedback(kind="feedback"), H_II, torch.float64)))
    (one, factor_one), (two, factor_two) = found
    assert torch.equal(factor_one.M_II, factor_two.M_II)
    assert torch.equal(one.codes_OI, two.codes_OI) and torch.equal(one.loss_O, two.loss_O)


@pytest.fixture
def threads() -> object:
    """Sets the number of threads; puts it back afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
