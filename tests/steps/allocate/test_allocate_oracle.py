"""Every exact allocator against brute force, and against each other where brute force ends."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from allocation import brute_force, problem, realistic
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.allocate import ILP, DynamicProgram, Greedy, Lagrangian
from schemas.errors import InputError
from steps.allocate import dp
from steps.allocate.build import solve
from steps.allocate.problem import Problem, Row, violations
from steps.allocate.program import program_of, without_dominated

EXACT: list[Any] = [ILP(kind="ilp", gap=0), Lagrangian(kind="lagrangian"), DynamicProgram(kind="dp")]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Up to 6 units and 5 formats, with ties, zero scores, forbidden formats and any budget."""
    shape = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = draw(st.sampled_from([3, 20, 10**9]))
    bytes_UC = rng.integers(1, size + 1, shape)
    score_UC = rng.integers(0, 6, shape) / 7 if draw(st.booleans()) else rng.random(shape)
    allowed_UC = rng.random(shape) < 0.8
    allowed_UC[:, 0] = True
    least = np.where(allowed_UC, bytes_UC, bytes_UC.max()).min(axis=1).sum()
    most = np.where(allowed_UC, bytes_UC, 0).max(axis=1).sum()
    limit = int(least + draw(st.floats(0, 1)) * (most - least))
    return problem(bytes_UC.tolist(), score_UC.tolist(), limit, allowed_UC=allowed_UC)


@pytest.mark.parametrize("allocator", EXACT, ids=lambda a: a.kind)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(given_problem=problems())
def test_least_score_equals_brute_force(allocator: Any, given_problem: Problem) -> None:
    found = solve(given_problem, allocator)
    best = brute_force(given_problem, given_problem.score_of)
    assert best is not None
    assert math.isclose(given_problem.score_of(found.choice_U), best, rel_tol=1e-9, abs_tol=1e-12)
    assert found.bound <= best + 1e-9 * abs(best) + 1e-12
    assert found.gap <= 1e-9
    assert violations(given_problem, found.choice_U) == []


@pytest.mark.parametrize("allocator", EXACT, ids=lambda a: a.kind)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(given_problem=problems(), slack=st.floats(0.001, 1))
def test_fewest_bytes_under_a_score_limit_equal_brute_force(
    allocator: Any, given_problem: Problem, slack: float
) -> None:
    score_UC = np.where(given_problem.allowed_UC, given_problem.score_UC, np.nan)
    least, most = np.nanmin(score_UC, axis=1).sum(), np.nanmax(score_UC, axis=1).sum()
    limited = replace(given_problem, limit_bytes=None, limit_score=float(least + slack * (most - least)) + 1e-6)
    found = solve(limited, allocator)
    assert limited.bytes_of(found.choice_U) == brute_force(limited, limited.bytes_of)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(given_problem=problems(), seed=st.integers(0, 2**32 - 1))
def test_ilp_with_several_limits_equals_brute_force(given_problem: Problem, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = given_problem.bytes_UC.shape
    part_UC = given_problem.bytes_UC * (np.arange(shape[0]) % 2 == 0)[:, None]
    rows = [Row("part", part_UC.astype(float), float(part_UC.max(axis=1).sum() * rng.uniform(0.5, 1)), "bytes")]
    cost_UC = rng.random(shape)
    rows.append(Row("latency", cost_UC, float(cost_UC.max(axis=1).sum() * rng.uniform(0.3, 1)), "microseconds"))
    limited = replace(given_problem, rows=tuple(rows))
    best = brute_force(limited, limited.score_of)
    if best is None:
        with pytest.raises(InputError, match="together"):
            solve(limited, ILP(kind="ilp", gap=0))
        return
    found = solve(limited, ILP(kind="ilp", gap=0))
    assert math.isclose(limited.score_of(found.choice_U), best, rel_tol=1e-6, abs_tol=1e-9)
    assert found.bound <= best + 1e-6 * abs(best) + 1e-9


@pytest.mark.parametrize("shapes", ["few", "many"])
@pytest.mark.parametrize("n_units", [12, 24, 60, 200])
def test_allocators_agree_beyond_brute_force(n_units: int, shapes: str) -> None:
    values = {}
    for allocator in EXACT:
        given_problem = realistic(n_units, 7, seed=n_units, shapes=shapes)
        found = solve(given_problem, allocator)
        values[allocator.kind] = found.value
        assert found.gap < 1e-9
    assert max(values.values()) <= min(values.values()) * (1 + 1e-9)


def test_the_oracle_needs_no_relaxation() -> None:
    """Without a bound the dynamic program trusts nothing; with it, it finds the same plan."""
    for seed in range(5):
        program = without_dominated(program_of(realistic(14, 5, seed, shapes="many")))
        found = solve(realistic(14, 5, seed, shapes="many"), DynamicProgram(kind="dp"))
        assert program.value(dp.solve(program)) == pytest.approx(found.value, rel=1e-12)


def test_the_dynamic_program_gives_up_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dp, "STATES", 3)
    program = program_of(realistic(14, 5, shapes="many"))
    with pytest.raises(InputError, match="too many partial plans"):
        dp.solve(program)


def test_ilp_beats_greedy_where_greedy_is_trapped() -> None:
    """The best ratio first leaves room that nothing fits; the best plan takes the second-best step alone."""
    trap = problem([[0, 6], [0, 10]], [[7.0, 0.0], [10.0, 0.0]], limit=10)
    greedy, best = solve(trap, Greedy(kind="greedy")), solve(trap, ILP(kind="ilp"))
    assert trap.score_of(greedy.choice_U) == 10.0
    assert trap.score_of(best.choice_U) == 7.0
    assert greedy.gap > 0.1 and best.gap == 0


def test_greedy_goes_on_after_a_step_that_does_not_fit() -> None:
    """Unit 0's upgrade has the best ratio and does not fit; stopping there would leave the other two untouched."""
    given_problem = problem([[0, 100], [0, 5], [0, 5]], [[1000.0, 0.0], [1.0, 0.0], [1.0, 0.0]], limit=10)
    found = solve(given_problem, Greedy(kind="greedy"))
    assert given_problem.score_of(found.choice_U) == 1000.0
    assert given_problem.bytes_of(found.choice_U) == 10


def test_equal_scores_give_a_uniform_plan() -> None:
    """Units that are alike, at a budget of exactly one format, all get that format."""
    given_problem = problem([[2, 3, 4]] * 8, [[9.0, 3.0, 1.0]] * 8, limit=24)
    found = solve(given_problem, ILP(kind="ilp"))
    assert set(found.choice_U.tolist()) == {1}


def test_both_limits_at_once_name_what_is_needed() -> None:
    given_problem = replace(problem([[1, 9]] * 3, [[5.0, 1.0]] * 3, limit=10), limit_score=3.0)
    with pytest.raises(InputError, match="at least 27 bytes"):
        solve(given_problem, ILP(kind="ilp"))
