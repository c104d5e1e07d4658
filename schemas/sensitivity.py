"""Metrics that score what one unit in one format does to the model.

Scores of `kl_probe`, `fisher`, `fisher_rows` and `hutchinson` are nats per token and predict the KL of a plan. The
others order formats only: their sums compare plans, but say nothing about KL.
"""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from schemas.base import Spec
from schemas.format import FormatField


class KLProbe(Spec):
    """Swap one quantized unit into the original and measure KL(original || swapped) of the logits."""

    step: Literal["kl_probe"]
    batch: int = Field(default=16, ge=1)


class PairProbe(Spec):
    """Swap two neighbouring units into the original at once: how far the KL of both is from the sum of each alone.

    Neighbours are units at most `span` apart in model order. With a plan on the input port, each unit is in the format
    that the plan chose; else both are in the same one, for each of `formats` (none named: every format offered).
    """

    step: Literal["pair_probe"]
    batch: int = Field(default=16, ge=1)
    span: int = Field(default=1, ge=1)
    formats: tuple[FormatField, ...] = ()
    resamples: int = Field(default=1000, ge=100)
    seed: int = 0


class Fisher(Spec):
    """Output error weighted by label-free Fisher information: 1/2 sum over tokens of (g . dW x)^2.

    g is the gradient, at the unit's outputs, of the log-likelihood of labels sampled from the model's own predictions
    with `seed`, `samples` times per token.
    """

    step: Literal["fisher"]
    samples: int = Field(default=1, ge=1)
    seed: int = 0
    batch: int = Field(default=8, ge=1)


class FisherRows(Spec):
    """The Fisher metric without a pass per candidate: the solver's loss of each output row, which candidates record,
    times the mean square of that row's gradient; labels as in `fisher`."""

    step: Literal["fisher_rows"]
    samples: int = Field(default=1, ge=1)
    seed: int = 0
    batch: int = Field(default=8, ge=1)


class Hutchinson(Spec):
    """Mean eigenvalue of the unit's Hessian of the KL, times the squared weight error (HAWQ-V2).

    The trace is estimated with `samples` random sign vectors.
    """

    step: Literal["hutchinson"]
    samples: int = Field(default=8, ge=1)
    seed: int = 0
    batch: int = Field(default=8, ge=1)


class OutputError(Spec):
    """The mean squared error of the unit's output on the calibration text, as the solver recorded it."""

    step: Literal["output_error"]


class SizeNormalised(Spec):
    """Output error per output, divided by (weights of the unit)^`exponent` (BitsFusion)."""

    step: Literal["size_normalised"]
    exponent: float = Field(default=0.3, ge=0, le=1)


class WeightError(Spec):
    """The squared error of the unit's weights. Needs no text."""

    step: Literal["weight_error"]


class LIM(Spec):
    """Layer input modification: how far a block turns its input, times each candidate's relative squared error."""

    step: Literal["lim"]
    batch: int = Field(default=16, ge=1)


class ZD(Spec):
    """Z-score distribution: the fewer of a block's weights lie above mean + `threshold` deviations, the more it counts.

    Times each candidate's relative squared error. Needs no text.
    """

    step: Literal["zd"]
    threshold: float = Field(default=1.0, ge=0)


class Rescore(Spec):
    """Score again around a plan: what a unit costs in a format while all others keep what the plan gave them.

    Per unit the plan's format and its neighbours on the unit's convex hull of bytes and first scores are measured;
    other formats are not offered, or estimated from pairwise interactions where these are given.
    """

    step: Literal["rescore"]
    batch: int = Field(default=16, ge=1)


Metric = KLProbe | Fisher | FisherRows | Hutchinson | OutputError | SizeNormalised | WeightError | LIM | ZD
"""What gives a score to every candidate; the short recipe names one by its `step`."""

MetricName = Literal[
    "kl_probe",
    "fisher",
    "fisher_rows",
    "hutchinson",
    "output_error",
    "size_normalised",
    "weight_error",
    "lim",
    "zd",
]

PREDICT_KL: frozenset[MetricName] = frozenset({"kl_probe", "fisher", "fisher_rows", "hutchinson"})
"""Metrics whose sums over a plan are nats per token."""

METRICS: dict[MetricName, type[Spec]] = {
    get_args(each.model_fields["step"].annotation)[0]: each for each in get_args(Metric)
}
