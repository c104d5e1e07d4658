"""What a plan may move to without a leap: per unit the formats next to its own on the unit's hull of bytes and score.

C formats.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from steps.allocate.problem import Choice, Problem

Point = tuple[float, float, int]
"""(bytes, score, format)."""


def neighbours(problem: Problem, choice_U: Choice) -> dict[str, tuple[str, ...]]:
    """Unit -> its chosen format between the next smaller and the next larger one on the hull, where there are such."""
    found = {}
    for u, unit in enumerate(problem.units):
        allowed_C = np.flatnonzero(problem.allowed_UC[u])
        sizes, scores = problem.bytes_UC[u], problem.score_UC[u]
        corners = hull([(float(sizes[c]), float(scores[c]), int(c)) for c in allowed_C])
        own = int(choice_U[u])
        below = [c for size, _, c in corners if size < sizes[own]][-1:]
        above = [c for size, _, c in corners if size > sizes[own]][:1]
        found[unit] = tuple(problem.formats[c] for c in (*below, own, *above))
    return found


def hull(points: Sequence[Point]) -> list[Point]:
    """The corners of the lower convex hull, by rising bytes and falling score (Andrew's monotone chain)."""
    corners: list[Point] = []
    for point in sorted(points):
        if corners and point[1] >= corners[-1][1]:
            continue
        while len(corners) > 1 and _above(corners[-2], corners[-1], point):
            corners.pop()
        corners.append(point)
    return corners


def _above(first: Point, middle: Point, last: Point) -> bool:
    """Whether the middle point is on or above the line between the others."""
    return (middle[1] - first[1]) * (last[0] - first[0]) >= (last[1] - first[1]) * (middle[0] - first[0])
