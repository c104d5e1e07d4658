"""KL by position in the window: whether a compressed model drifts as its context grows, or errs at the start.

P predicted positions, K spans of positions, D documents, B resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from schemas.report import Interval, PositionRow
from steps.model.positions import Positions
from steps.verify.bootstrap import interval, means

Spans = Sequence[Mapping[str, Any]]
"""`positions` of an evaluation: `first`, `last`, and `documents` with `tokens` and mean `kl` of each document there."""


def by_position(kl_P: torch.Tensor, positions: Positions) -> list[dict[str, Any]]:
    """Means per document over the positions 0, 1, 2-3, 4-7 and so on, summed in fp64.

    Spans double because a token's context does: KL changes with its logarithm rather than with its length.
    """
    last, documents = int(positions.column_P.max()), positions.documents
    bound_K = 1 << torch.arange(last.bit_length())
    span_P = torch.bucketize(positions.column_P, bound_K, right=True)
    cell_P, cells = span_P * documents + positions.document_P, (len(bound_K) + 1) * documents
    count_KD = torch.bincount(cell_P, minlength=cells).view(-1, documents)
    sum_KD = torch.zeros(cells, dtype=torch.float64).index_add_(0, cell_P, kl_P.cpu().double()).view(-1, documents)
    mean_KD = sum_KD / count_KD.clamp(min=1)
    found = []
    for k, (count_D, mean_D) in enumerate(zip(count_KD.tolist(), mean_KD.tolist(), strict=True)):
        rows = [{"tokens": t, "kl": mean} for t, mean in zip(count_D, mean_D, strict=True)]
        found.append({"first": (1 << k) >> 1, "last": min((1 << k) - 1, last), "documents": rows})
    return found


def position_rows(mixed: Spans, uniform: Spans, count_BD: torch.Tensor) -> list[PositionRow]:
    """Intervals over documents of each span; of the uniform baseline where it has the same span."""
    others = {(span["first"], span["last"]): span for span in uniform}
    rows = []
    for span in mixed:
        other = others.get((span["first"], span["last"]))
        rows.append(
            PositionRow(
                first=span["first"],
                last=span["last"],
                kl=_interval(span, count_BD),
                uniform=other and _interval(other, count_BD),
            )
        )
    return rows


def _interval(span: Mapping[str, Any], count_BD: torch.Tensor) -> Interval:
    """Over the resamples that drew a document long enough to reach the span; the sample itself always does."""
    mean_B = means(count_BD, span["documents"], "kl")
    return interval(mean_B[~mean_B.isnan()])
