"""The solvers' common form: one choice per unit, least total value, every total weight within its capacity.

U units, C formats, K limits (the first is the budget, then the extra rows). Bytes stay exact: float64 holds integers
up to 2^53.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from steps.allocate.problem import Choice, Floats, Problem


@dataclass(frozen=True)
class Program:
    """A multiple-choice knapsack. value_UC is infinite where a format is not allowed; weight_KUC is always finite.

    Capacities of weights that are not whole numbers already contain the slack for rounding.
    """

    value_UC: Floats
    weight_KUC: Floats
    capacity_K: Floats

    def value(self, choice_U: Choice) -> float:
        """Total value, correctly rounded."""
        return math.fsum(self.value_UC[np.arange(len(choice_U)), choice_U].tolist())

    def used(self, choice_U: Choice) -> Floats:
        """Total weight per limit, correctly rounded, [K]."""
        chosen_KU = self.weight_KUC[:, np.arange(len(choice_U)), choice_U]
        return np.array([math.fsum(row) for row in chosen_KU.tolist()])

    def fits(self, choice_U: Choice) -> bool:
        """Whether every limit holds."""
        return bool(np.all(self.used(choice_U) <= self.capacity_K))


def program_of(problem: Problem) -> Program:
    """Scores under bytes, or bytes under a score limit. Negative scores, which are noise, count as 0 here.

    A byte limit beside a score limit is no row: bytes are being minimised, so it is compared afterwards.
    """
    bytes_UC = problem.bytes_UC.astype(np.float64)
    score_UC = np.maximum(problem.score_UC, 0.0)
    if problem.score_capacity is None:
        limit = problem.limit_bytes if problem.limit_bytes is not None else int(problem.bytes_UC.max(1).sum())
        value_UC, weight_UC, capacity = score_UC, bytes_UC, float(limit)
    else:
        value_UC, weight_UC, capacity = bytes_UC, score_UC, problem.score_capacity
    return Program(
        np.where(problem.allowed_UC, value_UC, np.inf),
        np.stack([weight_UC, *(row.cost_UC for row in problem.rows)]),
        np.array([capacity, *(row.capacity for row in problem.rows)], dtype=np.float64),
    )


def without_dominated(program: Program) -> Program:
    """Forbid formats that another format of the unit beats or equals in value and in every weight.

    Of equals the first stays, so nothing depends on a solver's taste; at equal value the lighter one stays.
    """
    value_UC, weight_KUC = program.value_UC, program.weight_KUC
    formats = value_UC.shape[1]
    beaten_UC = np.zeros(value_UC.shape, dtype=bool)
    for other in range(formats):
        no_worse_UC = (value_UC[:, other, None] <= value_UC) & np.all(
            weight_KUC[:, :, other, None] <= weight_KUC, axis=0
        )
        better_UC = (value_UC[:, other, None] < value_UC) | np.any(weight_KUC[:, :, other, None] < weight_KUC, axis=0)
        first_C = np.arange(formats) > other
        beaten_UC |= no_worse_UC & (better_UC | first_C) & np.isfinite(value_UC[:, other, None])
    return replace(program, value_UC=np.where(beaten_UC, np.inf, value_UC))


def lightest(program: Program, limit: int = 0) -> Choice:
    """The allowed format of least weight under one limit for every unit; of equals the one of least value."""
    weight_UC = np.where(np.isfinite(program.value_UC), program.weight_KUC[limit], np.inf)
    tied_UC = weight_UC == weight_UC.min(axis=1, keepdims=True)
    choice_U: Choice = np.where(tied_UC, program.value_UC, np.inf).argmin(axis=1)
    return choice_U
