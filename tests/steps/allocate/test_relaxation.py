"""Prices, bounds, fills, presolve, and that nothing depends on order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from allocation import problem, realistic

from schemas.allocate import ILP, Greedy, Lagrangian, RankCut, Waterfill
from schemas.errors import InputError
from schemas.format import Affine
from steps.allocate import core, greedy, random
from steps.allocate.build import solve
from steps.allocate.lagrangian import bound_of, relax
from steps.allocate.problem import Problem, Row, canonical, violations
from steps.allocate.program import Program, lightest, program_of, without_dominated
from steps.allocate.uniform import assign

LAGRANGIAN = Lagrangian(kind="lagrangian")


@pytest.mark.parametrize("seed", range(4))
def test_the_price_maximises_the_bound(seed: int) -> None:
    """The exact price of one limit: no other price on a fine grid gives a better bound."""
    program = without_dominated(program_of(realistic(40, 6, seed)))
    relaxed = relax(program)
    grid = float(relaxed.price_K[0]) * np.concatenate([np.linspace(0.5, 1.5, 201), [0.0, 1e-3, 1e3]])
    assert relaxed.bound >= max(bound_of(program, np.array([p])) for p in grid) * (1 - 1e-12)
    assert program.fits(relaxed.base_U)
    assert program.value(relaxed.base_U) >= relaxed.bound


def test_a_price_of_several_limits_is_a_bound() -> None:
    base = realistic(30, 6, seed=5)
    part_UC = base.bytes_UC * (np.arange(30) < 12)[:, None]
    limited = replace(base, rows=(Row("part", part_UC.astype(float), float(part_UC.max(1).sum() * 0.35), "bytes"),))
    found = solve(limited, ILP(kind="ilp", gap=0))
    assert (found.relaxed.price_K > 0).all()
    assert found.relaxed.bound <= found.value
    assert found.gap < 1e-6
    assert found.value >= solve(base, ILP(kind="ilp", gap=0)).value


def test_a_slack_limit_has_no_price() -> None:
    base = realistic(10, 4)
    found = solve(replace(base, limit_bytes=int(base.bytes_UC.max(1).sum())), LAGRANGIAN)
    assert found.relaxed.price_K.tolist() == [0.0]
    assert found.value == pytest.approx(float(base.score_UC.min(1).sum()), rel=1e-12)
    assert found.gap == 0


def test_the_core_states_the_gap_it_cannot_close() -> None:
    """With room for very few partial plans the bound weakens, and stays true."""
    program = without_dominated(program_of(realistic(300, 7, seed=2, shapes="many")))
    relaxed = relax(program)
    start_U = greedy.fill(program, relaxed.base_U)
    best_U, proven = core.close(program, relaxed, start_U)
    rough_U, bound = core.close(program, relaxed, start_U, states=5)
    assert program.value(best_U) == pytest.approx(proven, rel=1e-9)
    assert relaxed.bound <= bound <= proven <= program.value(rough_U) <= program.value(start_U)


def slow_greedy(program: Program) -> list[int]:
    """The definition: of all steps that improve and fit, take the one of most value per weight; repeat."""
    choice = lightest(program).tolist()
    value, weight, capacity = program.value_UC, program.weight_KUC[0], program.capacity_K[0]
    while True:
        room = capacity - sum(weight[u, c] for u, c in enumerate(choice))
        steps = [
            ((value[u, c] - value[u, here]) / (weight[u, c] - weight[u, here]), u, c)
            for u, here in enumerate(choice)
            for c in range(value.shape[1])
            if value[u, c] < value[u, here] and weight[u, c] - weight[u, here] <= room
        ]
        if not steps:
            return choice
        _, u, c = min(steps)
        choice[u] = c


@pytest.mark.parametrize("seed", range(6))
def test_greedy_is_its_definition(seed: int) -> None:
    program = without_dominated(program_of(realistic(25, 5, seed, shapes="many")))
    found = greedy.solve(program)
    assert found is not None and found.tolist() == slow_greedy(program)


def test_dominated_formats_are_never_chosen_and_ties_go_to_fewer_bytes() -> None:
    given = problem([[5, 3, 4, 3], [5, 3, 4, 3]], [[1.0, 1.0, 2.0, 1.0], [0.0, 0.0, 0.0, 1.0]], limit=10)
    kept = np.isfinite(without_dominated(program_of(given)).value_UC)
    assert kept.tolist() == [[False, True, False, False], [False, True, False, False]]


def shuffled(given: Problem, seed: int) -> Problem:
    rng = np.random.default_rng(seed)
    u, c = rng.permutation(len(given.units)), rng.permutation(len(given.formats))
    return canonical(
        replace(
            given,
            units=tuple(given.units[i] for i in u),
            formats=tuple(given.formats[i] for i in c),
            bytes_UC=given.bytes_UC[u][:, c],
            score_UC=given.score_UC[u][:, c],
            allowed_UC=given.allowed_UC[u][:, c],
            weights_U=given.weights_U[u],
        )
    )


@pytest.mark.parametrize("allocator", [ILP(kind="ilp"), LAGRANGIAN, Greedy(kind="greedy"), Waterfill(kind="waterfill")])
def test_order_of_units_and_formats_changes_nothing(allocator: Any) -> None:
    """Not even which of two equally good plans is found: scores here are full of ties."""
    base = realistic(40, 6, seed=9)
    tied = replace(base, score_UC=np.round(base.score_UC, 3) + 1e-3)
    plans = [tied.plan_of(solve(tied, allocator).choice_U)]
    for seed in range(3):
        other = shuffled(tied, seed)
        found = solve(other, allocator)
        plans.append(other.plan_of(found.choice_U))
    assert all(plan == plans[0] for plan in plans)


def test_random_plans_are_feasible_and_worse() -> None:
    given = realistic(30, 6, seed=4)
    program = without_dominated(program_of(given))
    plans = random.plans(program, lightest(program), 20, seed=0)
    assert all(violations(given, p) == [] for p in plans)
    assert len({tuple(p) for p in plans.tolist()}) == 20
    best = solve(given, LAGRANGIAN).value
    assert min(given.score_of(p) for p in plans) > best
    assert np.array_equal(plans, random.plans(program, lightest(program), 20, seed=0))


def test_waterfill_matches_the_ilp_when_its_model_holds() -> None:
    """Scores exactly c * 4^-bits: the closed form, rounded and filled, is within a few per cent of the optimum."""
    rng = np.random.default_rng(0)
    weights_U, bits_C = np.full(60, 4096), np.arange(1.0, 9.0)
    bytes_UC = (weights_U[:, None] * bits_C / 8).astype(int)
    score_UC = rng.lognormal(0, 2, 60)[:, None] * 4.0**-bits_C
    given = problem(bytes_UC.tolist(), score_UC.tolist(), int(60 * 4096 * 4 / 8), weights_U=weights_U)
    water, best = solve(given, Waterfill(kind="waterfill")), solve(given, LAGRANGIAN)
    assert best.value <= water.value <= 1.1 * best.value
    assert given.bytes_of(water.choice_U) <= given.limit_bytes  # type: ignore[operator]


def test_waterfill_gives_equal_sensitivities_equal_bits() -> None:
    given = problem([[1, 2, 3, 4]] * 5, [[256.0, 64.0, 16.0, 4.0]] * 5, 15)
    assert solve(given, Waterfill(kind="waterfill")).choice_U.tolist() == [2] * 5


RANKCUT = RankCut(kind="rankcut", high=Affine(bits=4, group_size="row"), low=Affine(bits=2, group_size="row"))


def test_a_uniform_plan_takes_the_best_of_no_more_bytes_where_its_format_is_pinned_away() -> None:
    given_ = problem(
        [[10, 20, 25, 30], [10, 20, 30, 30], [40, 50, 60, 30]],
        [[3.0, 1.0, 2.0, 0.5], [3.0, 2.0, 1.0, 0.5], [3.0, 2.0, 1.0, 4.0]],
        allowed_UC=np.array([[True, True, True, False]] * 3),
    )
    assert assign(given_, 3).tolist() == [1, 2, 0], "the last one has none as small, and takes its smallest"


def test_rankcut_raises_the_most_damaged_and_stops_at_the_cut() -> None:
    """Importance 9, 8, 7, 1: two fit; the fourth would fit where the third does not, and is not taken."""
    formats = ("int2-row", "int4-row")
    given = problem([[1, 3], [1, 3], [1, 9], [1, 2]], [[9, 1], [8, 1], [7, 1], [1, 0]], 9, formats=formats)
    found = solve(given, RANKCUT)
    assert found.choice_U.tolist() == [1, 1, 0, 0]
    ends = [solve(replace(given, limit_bytes=limit), RANKCUT).choice_U.tolist() for limit in (4, 17)]
    assert ends == [[0] * 4, [1] * 4]
    with pytest.raises(InputError, match="no plan within"):
        solve(replace(given, limit_bytes=3), RANKCUT)


@pytest.mark.parametrize("allocator", [Waterfill(kind="waterfill"), RANKCUT])
def test_baseline_methods_refuse_what_they_cannot_do(allocator: Any) -> None:
    given = problem([[1, 2]], [[2.0, 1.0]], limit_score=1.5, formats=("int2-row", "int4-row"))
    with pytest.raises(InputError, match="needs one limit on bytes"):
        solve(given, allocator)


def test_rankcut_names_a_format_that_is_not_offered() -> None:
    with pytest.raises(InputError, match="not offered"):
        solve(problem([[1, 2]], [[2.0, 1.0]], 2), RANKCUT)
