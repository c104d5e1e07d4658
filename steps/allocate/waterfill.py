"""Closed-form bit allocation (BAQ, arXiv:2506.05664), rounded to the bits that exist.

Differs from the paper: units instead of columns, true bits of whole formats instead of fractional levels, and the level
is set so that the rounded plan fits the bytes exactly; what is left is filled greedily. U units, C formats.
"""

from __future__ import annotations

import numpy as np

from steps.allocate import greedy
from steps.allocate.problem import Choice, Floats, Problem
from steps.allocate.program import Program, lightest

HALVINGS = 60
"""Bisections of the water level, beyond which float64 has no more digits."""


def ideal_bits(sensitivity_U: Floats, weights_U: Floats, mean_bits: float) -> Floats:
    """Bits R_u that minimise sum c_u 4^-R_u at a given mean over all weights: every weight gets equal loss.

    R_u = mean + 1/2 log2((c_u / n_u) / weighted geometric mean of c / n).
    """
    log_U = np.log2(sensitivity_U / weights_U)
    share_U = weights_U / weights_U.sum()
    return np.asarray(mean_bits + 0.5 * (log_U - float(share_U @ log_U)))


def sensitivities(problem: Problem) -> Floats:
    """c_u of the model score = c_u 4^-bits: the geometric mean over the formats of score * 4^bits."""
    bits_UC = 8 * problem.bytes_UC / problem.weights_U[:, None]
    usable_UC = problem.allowed_UC & (problem.score_UC > 0)
    log_UC = np.log2(np.where(usable_UC, problem.score_UC, 1.0)) + 2 * bits_UC
    counts_U = usable_UC.sum(axis=1)
    log_U = np.where(usable_UC, log_UC, 0.0).sum(axis=1) / np.maximum(counts_U, 1)
    known = counts_U > 0
    return np.exp2(np.where(known, log_U, log_U[known].min() if known.any() else 0.0))


def solve(problem: Problem, program: Program) -> Choice:
    """Round the closed form to the nearest bits on offer at the highest level that fits, then fill."""
    bits_UC = np.where(np.isfinite(program.value_UC), 8 * problem.bytes_UC / problem.weights_U[:, None], np.inf)
    ideal_U = ideal_bits(sensitivities(problem), problem.weights_U.astype(np.float64), 0.0)
    finite = bits_UC[np.isfinite(bits_UC)]
    low, high = float(finite.min() - ideal_U.max()) - 1.0, float(finite.max() - ideal_U.min()) + 1.0
    best_U = lightest(program)
    for _ in range(HALVINGS):
        level = (low + high) / 2
        choice_U = np.abs(bits_UC - (ideal_U + level)[:, None]).argmin(axis=1)
        if program.fits(choice_U):
            best_U, low = choice_U, level
        else:
            high = level
    return greedy.fill(program, best_U)
