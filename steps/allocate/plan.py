"""From a cost table and a budget to the plan and its baselines, all within the same exact bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from schemas.allocate import Allocate
from schemas.errors import InputError
from steps.allocate import greedy, uniform
from steps.allocate.build import Solution, solve
from steps.allocate.limits import Allowed, ByteLimit, Plan, byte_limits, extremes, infeasible
from steps.allocate.problem import Choice, Problem, canonical, violations
from steps.allocate.program import program_of, without_dominated
from steps.allocate.rows import extra_rows
from steps.allocate.sizing import Sizing
from steps.allocate.table import Table

T = TypeVar("T")
TIGHTEN = tuple(8**i for i in range(8))
"""Bytes taken off beyond the excess, try by try: the file's header depends on the plan by a few bytes."""


@dataclass(frozen=True)
class Planned:
    """The solved problem, the plan, and the baselines at no more bytes than `problem.limit_bytes`.

    For a budget that minimises bytes, the baselines get the plan's bytes.
    """

    problem: Problem
    solution: Solution
    baseline: Problem
    uniform: uniform.Uniform | None
    greedy_U: Choice | None


def problem_of(table: Table, sizing: Sizing, spec: Allocate, allowed: Allowed) -> Problem:
    """The table as a canonical problem, still without a limit on bytes. InputError if no plan is under the KL limit."""
    formats = tuple(table.formats)
    names_UC = [[f in allowed[u.name] for f in formats] for u in table.units]
    problem = Problem(
        units=tuple(u.name for u in table.units),
        formats=formats,
        bytes_UC=np.array([[sizing.unit(u, f) for f in formats] for u in table.units], dtype=np.int64),
        score_UC=table.score_UC,
        allowed_UC=np.array(names_UC) & table.present_UC,
        weights_U=np.array([sum(o * i for o, i in u.shapes) for u in table.units], dtype=np.int64),
        limit_score=spec.budget.max_predicted_kl,
        rows=extra_rows(spec.budget, sizing),
        document_UCD=table.document_UCD,
        tokens_D=table.tokens_D,
        offset=table.offset,
        offset_D=table.offset_D,
        counted=sizing.counted,
    )
    _check_reachable(problem)
    return canonical(problem)


def _check_reachable(problem: Problem) -> None:
    empty = [u for u, row in zip(problem.units, problem.allowed_UC, strict=True) if not row.any()]
    if empty:
        raise InputError("no candidate of a unit is allowed by its pins", where=empty[0], fix="loosen the pins")
    if problem.limit_score is not None:
        least_U = np.where(problem.allowed_UC, np.maximum(problem.score_UC, 0), np.inf).min(axis=1)
        least = float(least_U.sum()) + problem.offset
        if least > problem.limit_score:
            asked, wanted = f"{problem.limit_score}", f"at least {least:.6g} nats per token"
            raise infeasible("budget.max_predicted_kl", asked, wanted)


def plan(table: Table, sizing: Sizing, spec: Allocate, allowed: Allowed) -> Planned:
    """The allocator's plan, then greedy and the best uniform format under the same limits."""
    problem, limits = problem_of(table, sizing, spec, allowed), byte_limits(spec.budget, sizing)
    least = extremes(sizing, allowed)[0]
    problem, solution = _within(problem, limits, least, lambda p: solve(p, spec.allocator), lambda s: s.choice_U)
    if problem.limit_score is not None:
        size = problem.bytes_of(solution.choice_U)
        limits = [*limits, ByteLimit("bytes of the plan", size, sizing.all_units, str)]
        problem_at = replace(problem, limit_score=None)
    else:
        problem_at = replace(problem, limit_bytes=None)
    baseline, greedy_U = _within(problem_at, limits, least, _greedy, lambda choice_U: choice_U)

    def fits(choice_U: Choice) -> bool:
        whole = problem.plan_of(choice_U)
        within = all(limit.used(whole) <= limit.limit for limit in limits)
        return within and not violations(replace(baseline, limit_bytes=None), choice_U)

    return Planned(problem, solution, baseline, uniform.best(baseline, fits), greedy_U)


def _greedy(problem: Problem) -> Choice | None:
    return greedy.solve(without_dominated(program_of(problem)))


def _within(
    problem: Problem,
    limits: Sequence[ByteLimit],
    least: Plan,
    run: Callable[[Problem], T],
    choice_of: Callable[[T], Choice | None],
) -> tuple[Problem, T]:
    """Run with the bytes that the limits leave for the linears, less while the resulting file is still too large.

    What stands around the linears is taken from the least plan at first; headers of other plans differ by some bytes.
    """
    if not limits:
        return problem, run(problem)
    floor = problem.bytes_of(problem.choice_of(least))
    capacity = min(limit.limit - (limit.used(least) - floor) for limit in limits)
    for extra in TIGHTEN:
        limited = replace(problem, limit_bytes=max(capacity, floor))
        result = run(limited)
        choice_U = choice_of(result)
        over = 0 if choice_U is None else _excess(limits, problem.plan_of(choice_U))
        if over <= 0:
            break
        capacity -= over + extra
    return limited, result


def _excess(limits: Sequence[ByteLimit], plan: Plan) -> int:
    return max(limit.used(plan) - limit.limit for limit in limits)
