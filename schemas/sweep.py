"""A sweep over budgets: the front of size against KL, and how well predictions held along it."""

from __future__ import annotations

from typing import Literal

from schemas.artifact import Digest
from schemas.base import Spec
from schemas.report import Interval


class FrontPoint(Spec):
    """One plan that was measured on the evaluation text. `series` is what made it; `bits` the budget, if it had one."""

    series: str
    label: str
    bits: float | None
    bytes: int
    """Of the whole packed file."""
    bits_per_weight: float
    """True bits over the whole file."""
    kl: Interval
    predicted_kl: float | None


class Trend(Spec):
    """Measured against predicted KL of the sweep's plans, as a line in logarithms: measured = factor x predicted^slope.

    A slope of 1 means that predictions rank budgets as they should; `ratios` are measured over predicted, per budget.
    """

    slope: float
    factor: float
    ratios: tuple[float, ...]


class Sweep(Spec):
    """Everything about a sweep that its builds' own reports do not say."""

    version: Literal[1] = 1
    recipe: str
    model: str
    over: Literal["linears", "file"]
    bits: tuple[float, ...]
    builds: tuple[Digest, ...]
    points: tuple[FrontPoint, ...]
    trend: Trend | None
    notes: tuple[str, ...]
