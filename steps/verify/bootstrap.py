"""Paired bootstrap over documents, weighted by tokens: what a difference between two models is worth.

B resamples, D documents. The same resamples must be used for everything that is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from schemas.errors import InputError
from schemas.report import Contrast, Interval, Measured

LEVEL = 0.95
LEAST_KL = 1e-12
"""Nats; a smaller mean counts as this much in a ratio, so that a lossless model can be a denominator."""

Rows = Sequence[Mapping[str, float]]
"""`documents` (or `original`) of an evaluation: tokens, and means per predicted position."""


def draw(documents: int, count: int, seed: int) -> torch.Tensor:
    """count_BD fp64: how often each document is in each resample. Row 0 has each document once: the sample itself."""
    generator = torch.Generator().manual_seed(seed)
    pick_BD = torch.randint(documents, (count, documents), generator=generator)
    count_BD = torch.zeros(count + 1, documents, dtype=torch.float64)
    count_BD[0] = 1
    count_BD[1:].scatter_add_(1, pick_BD, torch.ones_like(pick_BD, dtype=torch.float64))
    return count_BD


def means(count_BD: torch.Tensor, rows: Rows, key: str) -> torch.Tensor:
    """Token-weighted mean of `key` in every resample, mean_B fp64."""
    if len(rows) != count_BD.shape[1]:
        raise InputError(
            "evaluations of different documents cannot be compared",
            got=f"{len(rows)} documents",
            wanted=f"{count_BD.shape[1]} documents",
            fix="evaluate both models on the same tokens",
        )
    weight_D = torch.tensor([float(row["tokens"]) for row in rows], dtype=torch.float64)
    value_D = torch.tensor([float(row[key]) for row in rows], dtype=torch.float64)
    return (count_BD @ (weight_D * value_D)) / (count_BD @ weight_D)


def interval(statistic_B: torch.Tensor) -> Interval:
    """Percentile interval of a statistic whose element 0 is that of the sample itself."""
    resampled_B = statistic_B[1:] if len(statistic_B) > 1 else statistic_B
    tail = (1 - LEVEL) / 2
    low, high = torch.quantile(resampled_B, torch.tensor([tail, 1 - tail], dtype=resampled_B.dtype)).tolist()
    return Interval(value=statistic_B[0].item(), low=low, high=high)


def measured(rows: Rows, size: int, count_BD: torch.Tensor) -> Measured:
    """Intervals of mean KL, perplexity = exp(mean nll) and top-1 agreement of a model of `size` bytes."""
    return Measured(
        bytes=size,
        kl=interval(means(count_BD, rows, "kl")),
        ppl=interval(means(count_BD, rows, "nll").exp()),
        top1=interval(means(count_BD, rows, "top1")),
    )


def difference(first: Rows, second: Rows, count_BD: torch.Tensor, key: str = "kl") -> Interval:
    """Of the mean of `first` minus that of `second`, paired."""
    return _paired(torch.sub, first, second, count_BD, key)


def ratio(first: Rows, second: Rows, count_BD: torch.Tensor, key: str = "kl") -> Interval:
    """Of the mean of `first` over that of `second`, paired; both are raised to LEAST_KL."""
    return _paired(lambda a, b: a.clamp(min=LEAST_KL) / b.clamp(min=LEAST_KL), first, second, count_BD, key)


def contrast(names: tuple[str, str], first: Rows, second: Rows, count_BD: torch.Tensor) -> Contrast:
    """KL of two models on the same documents; "better" means that the interval of first minus second is below 0."""
    gap = difference(first, second, count_BD)
    return Contrast(
        first=names[0],
        second=names[1],
        difference=gap,
        ratio=ratio(first, second, count_BD),
        verdict="better" if gap.high < 0 else "worse" if gap.low > 0 else "no difference",
    )


def _paired(
    combine: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    first: Rows,
    second: Rows,
    count_BD: torch.Tensor,
    key: str,
) -> Interval:
    if [row["tokens"] for row in first] != [row["tokens"] for row in second]:
        raise InputError("models were measured on different tokens", fix="evaluate both models on the same tokens")
    return interval(combine(means(count_BD, first, key), means(count_BD, second, key)))
