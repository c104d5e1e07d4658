"""The allocation problem as arrays: one format per unit, a cost and a size for each, and the limits.

U units, C formats, D documents. Units and formats are sorted by name, so that the order in which they were listed
changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Choice = NDArray[np.intp]
"""Index of the chosen format of each unit, [U]."""

ROUNDING = 1e-9
"""Relative slack of limits on sums of floats; limits on bytes are exact."""


@dataclass(frozen=True)
class Row:
    """An extra limit: the sum of cost_UC over the choices is at most `limit`."""

    name: str
    cost_UC: Floats
    limit: float
    unit: str

    @property
    def capacity(self) -> float:
        """The limit that sums are compared with."""
        return self.limit if self.unit == "bytes" else self.limit * (1 + ROUNDING)


@dataclass(frozen=True)
class Problem:
    """What may be chosen and at what cost.

    bytes_UC int64; score_UC raw predicted KL in nats per token; allowed_UC bool; weights_U original weights per unit;
    document_UCD scores per document and tokens_D their weights, when known. With `limit_score` bytes are minimised
    under it, else scores under `limit_bytes`.
    """

    units: tuple[str, ...]
    formats: tuple[str, ...]
    bytes_UC: NDArray[np.int64]
    score_UC: Floats
    allowed_UC: NDArray[np.bool_]
    weights_U: NDArray[np.int64]
    limit_bytes: int | None = None
    limit_score: float | None = None
    rows: tuple[Row, ...] = ()
    document_UCD: Floats | None = None
    tokens_D: Floats | None = None
    offset: float = 0.0
    """What is added to a sum of scores to make it a predicted KL, whatever the plan; per document `offset_D`."""
    offset_D: Floats | None = None
    counted: str = "linears"
    """What the units are, for messages: a limit on bytes counts an embedding too, when that is quantized."""

    @property
    def minimise(self) -> Literal["score", "bytes"]:
        """What is made small."""
        return "score" if self.limit_score is None else "bytes"

    def bytes_of(self, choice_U: Choice) -> int:
        """Exact bytes of the chosen formats."""
        return int(self.bytes_UC[np.arange(len(choice_U)), choice_U].sum())

    def score_of(self, choice_U: Choice) -> float:
        """Predicted KL of the chosen formats from the raw scores; correctly rounded, so independent of order."""
        return math.fsum([self.offset, *self.score_UC[np.arange(len(choice_U)), choice_U].tolist()])

    @property
    def score_capacity(self) -> float | None:
        """What the scores may add up to under `limit_score`."""
        return None if self.limit_score is None else self.limit_score * (1 + ROUNDING) - self.offset

    def plan_of(self, choice_U: Choice) -> dict[str, str]:
        """Unit name -> format name."""
        return {unit: self.formats[int(c)] for unit, c in zip(self.units, choice_U, strict=True)}

    def choice_of(self, plan: Mapping[str, str]) -> Choice:
        """The inverse of `plan_of`."""
        return np.array([self.formats.index(plan[unit]) for unit in self.units], dtype=np.intp)


def canonical(problem: Problem) -> Problem:
    """The same problem with units and formats sorted by name."""
    rows = np.array(sorted(range(len(problem.units)), key=lambda i: problem.units[i]), dtype=np.intp)
    columns = np.array(sorted(range(len(problem.formats)), key=lambda i: problem.formats[i]), dtype=np.intp)
    document = problem.document_UCD
    return replace(
        problem,
        units=tuple(problem.units[i] for i in rows),
        formats=tuple(problem.formats[i] for i in columns),
        bytes_UC=problem.bytes_UC[rows][:, columns],
        score_UC=problem.score_UC[rows][:, columns],
        allowed_UC=problem.allowed_UC[rows][:, columns],
        weights_U=problem.weights_U[rows],
        rows=tuple(replace(r, cost_UC=r.cost_UC[rows][:, columns]) for r in problem.rows),
        document_UCD=None if document is None else document[rows][:, columns],
    )


def violations(problem: Problem, choice_U: Choice) -> list[str]:
    """Everything that is wrong with a choice, recomputed from the problem; empty for a valid plan."""
    if choice_U.shape != (len(problem.units),):
        return [f"{choice_U.shape} choices for {len(problem.units)} units"]
    index = np.arange(len(choice_U))
    wrong = [f"{problem.units[u]}: format not allowed" for u in index[~problem.allowed_UC[index, choice_U]]]
    if problem.limit_bytes is not None and problem.bytes_of(choice_U) > problem.limit_bytes:
        wrong.append(f"{problem.bytes_of(choice_U)} bytes, limit {problem.limit_bytes}")
    if problem.score_capacity is not None:
        score = math.fsum(np.maximum(problem.score_UC[index, choice_U], 0).tolist())
        if score > problem.score_capacity:
            wrong.append(f"predicted KL {score + problem.offset}, limit {problem.limit_score}")
    for row in problem.rows:
        used = math.fsum(row.cost_UC[index, choice_U].tolist())
        if used > row.capacity:
            wrong.append(f"{row.name}: {used} {row.unit}, limit {row.limit}")
    return wrong
