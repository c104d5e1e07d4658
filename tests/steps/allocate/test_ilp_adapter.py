"""The solver is not believed: fake statuses and values, names that collide, both real solvers, none at all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pulp
import pytest
from allocation import problem, realistic

from schemas.allocate import ILP, Lagrangian
from schemas.errors import InputError
from steps.allocate import ilp
from steps.allocate.build import solve
from steps.allocate.problem import Problem, Row
from steps.allocate.program import Program, program_of, without_dominated

SPEC = ILP(kind="ilp", gap=0)
HARD: Problem = realistic(24, 7, seed=1)
"""The relaxation leaves a gap here, so the solver is called."""


class FakeSolver(pulp.LpSolver):
    """Answers whatever it is told: every variable the same value, or a function of its number."""

    name = "fake"

    def __init__(self, status: int, sol_status: int, values: Any) -> None:
        super().__init__(msg=False)
        self.answer = status, sol_status, values

    def available(self) -> bool:
        return True

    def actualSolve(self, lp: Any) -> int:
        status, sol_status, values = self.answer
        for number, variable in enumerate(sorted(lp.variables(), key=lambda v: int(v.name[1:]))):
            variable.varValue = values(number)
        lp.assignStatus(status, sol_status)
        return status


def install(monkeypatch: pytest.MonkeyPatch, status: int, sol_status: int, values: Any) -> None:
    monkeypatch.setattr(ilp, "make_solver", lambda spec, gap_abs: FakeSolver(status, sol_status, values))


REFUSED = [
    (pulp.LpStatusOptimal, pulp.LpSolutionIntegerFeasible, "Solution Found"),  # a time limit, as CBC and HiGHS tell it
    (pulp.LpStatusNotSolved, pulp.LpSolutionNoSolutionFound, "Not Solved"),
    (pulp.LpStatusInfeasible, pulp.LpSolutionInfeasible, "Infeasible"),
    (pulp.LpStatusUndefined, pulp.LpSolutionNoSolutionFound, "Undefined"),
]


@pytest.mark.parametrize(("status", "sol_status", "text"), REFUSED)
def test_an_answer_that_is_not_optimal_is_refused(
    monkeypatch: pytest.MonkeyPatch, status: int, sol_status: int, text: str
) -> None:
    """The plan is then the Lagrangian one with its own proof, and the refusal is stated."""
    install(monkeypatch, status, sol_status, lambda number: 1.0)
    found = solve(HARD, SPEC)
    assert found.solver is not None and text in found.solver["status"]
    assert "refused" in found.notes[0]
    assert found.choice_U.tolist() == solve(HARD, Lagrangian(kind="lagrangian")).choice_U.tolist()


@pytest.mark.parametrize("value", [None, 0.5, 1.0, 0.0, float("nan")])
def test_an_optimal_answer_that_is_no_plan_is_refused(monkeypatch: pytest.MonkeyPatch, value: float | None) -> None:
    """Fractions, two formats for a unit, none, nothing at all."""
    install(monkeypatch, pulp.LpStatusOptimal, pulp.LpSolutionOptimal, lambda number: value)
    assert "refused" in solve(HARD, SPEC).notes[0]


def open_program(limit: int) -> tuple[Program, Any]:
    """Two units; the heavy format of both is 20 bytes."""
    program = program_of(problem([[4, 10], [4, 10]], [[5.0, 0.0], [4.0, 0.0]], limit))
    return program, np.isfinite(program.value_UC)


def test_an_answer_over_the_budget_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, pulp.LpStatusOptimal, pulp.LpSolutionOptimal, lambda number: float(number % 2))
    program, open_UC = open_program(limit=19)
    answer = ilp.solve(program, open_UC, np.array([0, 0]), SPEC, 0.0)
    assert answer is not None and answer.choice_U is None and "over a limit" in answer.status


def test_nearly_one_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [1e-7, 0.9999999, 0.9999999, -1e-9]
    install(monkeypatch, pulp.LpStatusOptimal, pulp.LpSolutionOptimal, lambda number: values[number])
    program, open_UC = open_program(limit=19)
    answer = ilp.solve(program, open_UC, np.array([0, 0]), SPEC, 0.0)
    assert answer is not None and answer.choice_U is not None
    assert answer.choice_U.tolist() == [1, 0]


@pytest.mark.parametrize("solver", ["HiGHS", "CBC"])
def test_both_solvers_find_the_optimum(monkeypatch: pytest.MonkeyPatch, solver: str) -> None:
    """The whole problem, not just what reduced costs leave, against the exact program."""
    if solver == "CBC":
        monkeypatch.setattr(pulp.HiGHS, "available", lambda self: False)
    program = without_dominated(program_of(HARD))
    best = solve(HARD, Lagrangian(kind="lagrangian"))
    answer = ilp.solve(program, np.isfinite(program.value_UC), best.relaxed.base_U, SPEC, 0.0)
    assert answer is not None and answer.choice_U is not None
    assert solver in answer.solver
    assert program.value(answer.choice_U) == pytest.approx(best.value, rel=1e-9)
    assert answer.bound <= best.value * (1 + 1e-7)


def test_the_solver_is_asked_about_the_open_choices_only() -> None:
    found = solve(HARD, SPEC)
    assert found.solver is not None and found.solver["status"] == "Optimal, Optimal Solution Found"
    assert 2 <= found.solver["open_choices"] < HARD.allowed_UC.sum() / 2
    assert "integer program" in found.proof


def test_no_solver_is_called_when_the_relaxation_proves_the_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ilp, "solve", lambda *a: pytest.fail("called"))
    found = solve(HARD, ILP(kind="ilp", gap=0.5))
    assert found.solver is None and found.gap <= 0.5


def test_without_a_solver_the_exact_program_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ilp, "make_solver", lambda spec, gap_abs: None)
    found = solve(HARD, SPEC)
    assert found.gap < 1e-9 and "no solver is installed" in found.notes[0]


def test_without_a_solver_several_limits_that_nothing_obvious_meets_are_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ilp, "make_solver", lambda spec, gap_abs: None)
    cost_UC = np.array([[9.0, 5.0, 1.0]])
    clash = problem([[1, 5, 9]], [[9.0, 4.0, 1.0]], 6, rows=(Row("latency", cost_UC, 6.0, "microseconds"),))
    with pytest.raises(InputError, match="no solver is installed"):
        solve(replace(clash, limit_bytes=4), SPEC)


def test_colliding_names_are_different_units() -> None:
    """`l.0-q`, `l.0_q` and `l.0 q` are one name to CBC."""
    names = ("l.0-q", "l.0_q", "l.0 q", "l.0+q")
    for units in (names, names[::-1]):
        given = problem([[1, 2]] * 4, [[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [4.0, 0.0]], 6, units=units)
        plan = given.plan_of(solve(given, SPEC).choice_U)
        best = sorted(units, key=lambda u: -names.index(u) if units == names else names.index(u))
        assert {u for u, f in plan.items() if f == "f1"} == set(best[:2])


def test_enormous_and_tiny_numbers() -> None:
    """Bytes near 10^12 and scores near 10^-12 are scaled for the solver and exact outside it."""
    base = realistic(24, 5, seed=3)
    given = replace(base, bytes_UC=base.bytes_UC * 10_000 + 1, score_UC=base.score_UC * 1e-12)
    given = replace(given, limit_bytes=int(base.limit_bytes or 0) * 10_000)
    found, exact = solve(given, SPEC), solve(given, Lagrangian(kind="lagrangian"))
    assert found.value == pytest.approx(exact.value, rel=1e-9)
    assert found.solver is None or "Optimal" in found.solver["status"]
