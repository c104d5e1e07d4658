"""One format for every unit: the baseline no mixed plan may hide from. U units, C formats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from steps.allocate.problem import Choice, Problem


@dataclass(frozen=True)
class Uniform:
    """A format, the plan it makes, and the units that pins keep in another format."""

    format: str
    choice_U: Choice
    elsewhere: tuple[str, ...]


def assign(problem: Problem, column: int) -> Choice:
    """The format of that column wherever it is allowed.

    Elsewhere the allowed format of least score among those of no more bytes, or the smallest one if there is none.
    """
    smaller_UC = problem.allowed_UC & (problem.bytes_UC <= problem.bytes_UC[:, column, None])
    best_U = np.where(smaller_UC, problem.score_UC, np.inf).argmin(axis=1)
    least_U = np.where(problem.allowed_UC, problem.bytes_UC.astype(np.float64), np.inf).argmin(axis=1)
    other_U = np.where(smaller_UC.any(axis=1), best_U, least_U)
    return np.where(problem.allowed_UC[:, column], column, other_U)


def every(problem: Problem) -> list[Uniform]:
    """One plan per format that at least one unit may have."""
    found = []
    for column, name in enumerate(problem.formats):
        allowed_U = problem.allowed_UC[:, column]
        if allowed_U.any():
            elsewhere = tuple(u for u, ok in zip(problem.units, allowed_U, strict=True) if not ok)
            found.append(Uniform(name, assign(problem, column), elsewhere))
    return found


def best(problem: Problem, fits: Callable[[Choice], bool]) -> Uniform | None:
    """The uniform plan of least predicted score among those that fit, then of fewest bytes; None if none fits."""
    fitting = [u for u in every(problem) if fits(u.choice_U)]
    if not fitting:
        return None
    return min(fitting, key=lambda u: (problem.score_of(u.choice_U), problem.bytes_of(u.choice_U), u.format))
