"""How far one model's predictions are from another's, per token and per document, in nats.

P predicted positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from steps.model.positions import Positions
from steps.verify.by_position import by_position

FLOOR = -60.0
"""Least log-probability the original is credited with: e^-60 is far below fp32's resolution of a sum near 1."""
CHUNK = 1 << 22
"""Logits held at once, 16 MiB in fp32."""

Logits = Callable[[slice], torch.Tensor]
"""fp32 logits_PV of the asked slice of predicted positions."""


def log_probabilities(logits_PV: torch.Tensor) -> torch.Tensor:
    """Normalised over V and bounded below by FLOOR, as `kl` wants the original's."""
    return torch.log_softmax(logits_PV.float(), dim=-1).clamp_(min=FLOOR)


def kl(log_p_PV: torch.Tensor, log_q_PV: torch.Tensor) -> torch.Tensor:
    """kl_P = KL(p || q) in nats, fp32, never negative.

    Computed as sum p (e^d - 1 - d) with d = log q - log p, which equals -sum p d because p and q both sum to 1. Every
    term is at least 0 and second order in d, so fp32 noise eps in the logits costs eps^2, not eps: tiny divergences
    stay accurate. `log_p_PV` comes from `log_probabilities`, whose floor keeps e^d finite.
    """
    d_PV = log_q_PV - log_p_PV
    kl_P: torch.Tensor = torch.linalg.vecdot(log_p_PV.exp(), torch.expm1(d_PV).sub_(d_PV))
    return kl_P.clamp_(min=0)


@dataclass(frozen=True)
class Comparison:
    """One model against the original, per predicted position, fp32: KL(original || model), both models' negative
    log-likelihood of the next token, and 1 where both have the same most likely token."""

    kl_P: torch.Tensor
    nll_P: torch.Tensor
    original_nll_P: torch.Tensor
    top1_P: torch.Tensor


def compare_chunk(original_PV: torch.Tensor, logits_PV: torch.Tensor, label_P: torch.Tensor) -> Comparison:
    """Compare two sets of logits at the same positions; results on the CPU."""
    log_p_PV, log_q_PV = log_probabilities(original_PV), torch.log_softmax(logits_PV.float(), dim=-1)
    label_P1 = label_P.to(log_p_PV.device)[:, None]
    return Comparison(
        kl_P=kl(log_p_PV, log_q_PV).cpu(),
        nll_P=-log_q_PV.gather(1, label_P1).squeeze(1).cpu(),
        original_nll_P=-log_p_PV.gather(1, label_P1).squeeze(1).cpu(),
        top1_P=(original_PV.argmax(-1) == logits_PV.argmax(-1)).float().cpu(),
    )


def chunks(positions: int, vocabulary: int) -> Iterator[slice]:
    """Slices that cover `positions` so that at most CHUNK logits (and at least one row) are held at once."""
    rows = max(1, CHUNK // vocabulary)
    for start in range(0, positions, rows):
        yield slice(start, min(start + rows, positions))


def compare(original: Logits, model: Logits, positions: Positions, vocabulary: int) -> Comparison:
    """Stream both models' logits over all predicted positions."""
    parts = [compare_chunk(original(s), model(s), positions.label_P[s]) for s in chunks(len(positions), vocabulary)]
    return join(parts)


def join(parts: list[Comparison]) -> Comparison:
    """Comparisons of consecutive positions as one."""
    return Comparison(
        kl_P=torch.cat([part.kl_P for part in parts]),
        nll_P=torch.cat([part.nll_P for part in parts]),
        original_nll_P=torch.cat([part.original_nll_P for part in parts]),
        top1_P=torch.cat([part.top1_P for part in parts]),
    )


def document_means(value_P: torch.Tensor, positions: Positions) -> tuple[list[float], list[int]]:
    """Per document, the mean of `value_P` over its predicted positions (summed in fp64) and their number."""
    count_D = torch.bincount(positions.document_P, minlength=positions.documents)
    sum_D = torch.zeros(positions.documents, dtype=torch.float64)
    sum_D.index_add_(0, positions.document_P, value_P.cpu().double())
    return (sum_D / count_D).tolist(), count_D.tolist()


def weighted_mean(values: list[float], weights: list[int]) -> float:
    """Token-weighted mean over documents, in fp64."""
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


def documents_meta(comparison: Comparison, positions: Positions) -> dict[str, list[dict[str, Any]]]:
    """`documents` of an evaluation (tokens, kl, nll, top1), the same of the `original` measured against itself, and the
    KL by position in the window (`positions`)."""
    kl_D, tokens_D = document_means(comparison.kl_P, positions)
    nll_D, _ = document_means(comparison.nll_P, positions)
    top1_D, _ = document_means(comparison.top1_P, positions)
    original_D, _ = document_means(comparison.original_nll_P, positions)
    model, itself = zip(tokens_D, kl_D, nll_D, top1_D, strict=True), zip(tokens_D, original_D, strict=True)
    return {
        "documents": [{"tokens": t, "kl": k, "nll": n, "top1": a} for t, k, n, a in model],
        "original": [{"tokens": t, "kl": 0.0, "nll": n, "top1": 1.0} for t, n in itself],
        "positions": by_position(comparison.kl_P, positions),
    }
