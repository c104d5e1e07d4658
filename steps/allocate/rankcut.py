"""Rank and cut: the most important units in one format, the rest in another.

Layer-Wise Quantization, arXiv:2406.17415, with units instead of whole blocks.

The importance may be any: predicted damage, LIM, a z-score count. U units, C formats.
"""

from __future__ import annotations

import numpy as np

from steps.allocate import uniform
from steps.allocate.problem import Choice, Floats, Problem
from steps.allocate.program import Program


def solve(problem: Problem, program: Program, high: int, low: int, importance_U: Floats) -> Choice | None:
    """As many units as fit in format `high`, by falling importance, the others in `low`; None if not even none fits.

    The cut is at the first unit that does not fit: the method knows nothing finer. Pins hold as for uniform plans.
    """
    high_U, choice_U = uniform.assign(problem, high), uniform.assign(problem, low)
    if not program.fits(choice_U):
        return None
    for u in np.argsort(-importance_U, kind="stable"):
        trial_U = choice_U.copy()
        trial_U[u] = high_U[u]
        if not program.fits(trial_U):
            break
        choice_U = trial_U
    return choice_U


def damage(problem: Problem, low: int) -> Floats:
    """The default importance: predicted KL of having the unit in the low format."""
    return problem.score_UC[np.arange(len(problem.units)), uniform.assign(problem, low)]
