"""From the allocator's spec to a solved, proven and re-checked choice."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, assert_never

import numpy as np

from schemas.allocate import (
    ILP,
    Allocator,
    DynamicProgram,
    Given,
    Greedy,
    Lagrangian,
    Random,
    RankCut,
    Uniform,
    Waterfill,
)
from schemas.errors import InputError
from steps.allocate import core, dp, given, greedy, ilp, random, rankcut, uniform, waterfill
from steps.allocate.lagrangian import Relaxed, relax
from steps.allocate.problem import Choice, Problem, violations
from steps.allocate.program import Program, program_of, without_dominated


@dataclass(frozen=True)
class Solution:
    """A valid choice, a lower bound that holds for every plan, the prices behind it, and how the bound was proven."""

    choice_U: Choice
    value: float
    bound: float
    relaxed: Relaxed
    proof: str
    solver: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()

    @property
    def gap(self) -> float:
        """(value - bound) / value, >= 0."""
        return max(0.0, self.value - self.bound) / abs(self.value) if self.value else 0.0


def solve(problem: Problem, allocator: Allocator) -> Solution:
    """The allocator's plan. InputError when no plan meets the limits, or when the allocator cannot handle them."""
    program = without_dominated(program_of(problem))
    relaxed = relax(program)
    match allocator:
        case ILP():
            found = _ilp(program, relaxed, allocator)
        case Lagrangian():
            found = _lagrangian(program, relaxed)
        case DynamicProgram():
            found = _dp(program, relaxed)
        case Greedy():
            found = _solution(program, relaxed, _found(greedy.solve(program)), relaxed.bound, "relaxation")
        case Waterfill():
            _require_byte_limit(problem, "waterfill")
            found = _solution(program, relaxed, waterfill.solve(problem, program), relaxed.bound, "relaxation")
        case RankCut():
            _require_byte_limit(problem, "rankcut")
            found = _solution(program, relaxed, _rankcut(problem, program, allocator), relaxed.bound, "relaxation")
        case Uniform():
            _require_byte_limit(problem, "uniform")
            found = _solution(program_of(problem), relaxed, _uniform(problem, allocator), relaxed.bound, "relaxation")
        case Given():
            chosen_U = given.choice(problem, allocator.plan)
            found = _solution(program_of(problem), relaxed, chosen_U, relaxed.bound, "relaxation")
        case Random():
            start_U = _found(greedy.feasible_start(program))
            drawn_U = random.plans(program_of(problem), start_U, 1, allocator.seed)[0]
            found = _solution(program_of(problem), relaxed, drawn_U, relaxed.bound, "relaxation")
        case _:
            assert_never(allocator)
    _check_both(problem, found)
    wrong = violations(problem, found.choice_U)
    assert not wrong, wrong
    return found


def _check_both(problem: Problem, found: Solution) -> None:
    """Bytes were minimised under a score limit: are they within a byte limit given beside it?"""
    size = problem.bytes_of(found.choice_U)
    if problem.limit_score is not None and problem.limit_bytes is not None and size > problem.limit_bytes:
        raise InputError(
            "no plan meets both max_predicted_kl and the limit on bytes",
            where="budget",
            got=f"max_predicted_kl {problem.limit_score} and {problem.limit_bytes} bytes of {problem.counted}",
            wanted=f"at least {size} bytes of {problem.counted} for this KL (proven: no fewer than {found.bound:.0f})",
            fix="raise one of the two",
        )


def _solution(program: Program, relaxed: Relaxed, choice_U: Choice, bound: float, proof: str) -> Solution:
    value = program.value(choice_U)
    return Solution(choice_U, value, min(value, max(bound, relaxed.bound)), relaxed, proof)


def _lagrangian(program: Program, relaxed: Relaxed) -> Solution:
    """Fill greedily; with one limit, then solve what is still open exactly."""
    if len(program.capacity_K) > 1:
        start = relaxed.base_U if program.fits(relaxed.base_U) else _found(greedy.feasible_start(program))
        return _solution(program, relaxed, greedy.fill(program, start), relaxed.bound, "relaxation")
    choice_U, bound = core.close(program, relaxed, greedy.fill(program, relaxed.base_U))
    return _solution(program, relaxed, choice_U, bound, "relaxation, then dynamic program over the core")


def _ilp(program: Program, relaxed: Relaxed, spec: ILP) -> Solution:
    """The Lagrangian plan, then the integer program over whatever could still beat it."""
    try:
        start = _lagrangian(program, relaxed)
    except InputError:  # several limits without an obvious start: the solver decides
        start = None
    if start is not None and start.value - relaxed.bound <= spec.gap * abs(start.value):
        return start
    known = np.inf if start is None else start.value
    open_UC = np.isfinite(program.value_UC) & (relaxed.reduced(program) <= known - relaxed.bound)
    base_U = relaxed.base_U if start is None else start.choice_U
    open_UC[np.arange(len(base_U)), base_U] = True
    answer = ilp.solve(program, open_UC, base_U, spec, spec.gap * abs(program.value(base_U)))
    if answer is None or answer.choice_U is None:
        return _refused(start, answer)
    bound = max(min(known, answer.bound), relaxed.bound if start is None else start.bound)
    value = program.value(answer.choice_U)
    best_U = answer.choice_U if start is None or value < start.value else start.choice_U
    proof = f"{'' if start is None else start.proof + ', then '}integer program over the choices still open"
    return replace(_solution(program, relaxed, best_U, bound, proof), solver=_facts(answer))


def _refused(start: Solution | None, answer: ilp.Answer | None) -> Solution:
    """The Lagrangian plan with its own proof instead of a solver's; an error when there is none."""
    reason = "no solver is installed (highspy, or the CBC of pulp)" if answer is None else f"refused: {answer.status}"
    if start is None:
        raise InputError(
            "no plan meets all limits together, as far as is known",
            where="budget",
            got=f"several limits; {answer.solver if answer else 'solver'}: {reason}",
            wanted="limits that some plan meets together",
            fix="raise a limit, allow the solver more seconds, or drop a part or the latency",
        )
    return replace(start, solver=None if answer is None else _facts(answer), notes=(f"integer program: {reason}",))


def _facts(answer: ilp.Answer) -> dict[str, Any]:
    return {
        "name": answer.solver,
        "status": answer.status,
        "open_units": answer.open_units,
        "open_choices": answer.open_choices,
    }


def _dp(program: Program, relaxed: Relaxed) -> Solution:
    if len(program.capacity_K) > 1:
        raise InputError(
            "the dynamic program handles one limit",
            where="allocator",
            got=f"{len(program.capacity_K)} limits",
            fix="choose allocator `ilp`",
        )
    known = program.value(greedy.fill(program, relaxed.base_U))
    choice_U = dp.solve(program, relaxed, known)
    return _solution(program, relaxed, choice_U, program.value(choice_U), "dynamic program over all units")


def _offered(problem: Problem, *names: str) -> list[int]:
    """Columns of formats; InputError for one that is not offered."""
    for name in names:
        if name not in problem.formats:
            raise InputError(
                "the allocator names a format that is not offered",
                where="allocator",
                got=name,
                wanted="formats among " + ", ".join(problem.formats),
            )
    return [problem.formats.index(name) for name in names]


def _uniform(problem: Problem, spec: Uniform) -> Choice:
    (column,) = _offered(problem, spec.format.name)
    choice_U = uniform.assign(problem, column)
    size = problem.bytes_of(choice_U)
    if problem.limit_bytes is not None and size > problem.limit_bytes:
        raise InputError(
            "the uniform format does not fit the budget",
            where="allocator",
            got=f"{size} bytes of {problem.counted} in {spec.format.name}",
            wanted=f"at most {problem.limit_bytes}",
            fix="raise the budget, or name a smaller format",
        )
    return choice_U


def _rankcut(problem: Problem, program: Program, spec: RankCut) -> Choice:
    high, low = _offered(problem, spec.high.name, spec.low.name)
    return _found(rankcut.solve(problem, program, high, low, rankcut.damage(problem, low)))


def _found(choice_U: Choice | None) -> Choice:
    if choice_U is None:
        raise InputError(
            "the allocator finds no plan within the limits",
            where="budget",
            fix="choose allocator `ilp`, or raise a limit",
        )
    return choice_U


def _require_byte_limit(problem: Problem, name: str) -> None:
    if problem.limit_bytes is None or problem.limit_score is not None or problem.rows:
        raise InputError(
            f"allocator {name} needs one limit on bytes and no other",
            where="allocator",
            wanted="a budget of bits_per_weight or bytes alone",
            fix="choose allocator `ilp`",
        )
