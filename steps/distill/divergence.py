"""How far the student's predictions are from the original's, with gradients.

P predicted positions, V vocabulary, K likeliest tokens.
"""

from __future__ import annotations

import torch

from schemas.distill import Logits
from steps.verify.metrics import log_probabilities

LEAST_REST = 1e-12
"""Least probability of all tokens beyond the likeliest K together; fp32 sums to 1 no better."""


def divergence(spec: Logits, original_PV: torch.Tensor, student_PV: torch.Tensor) -> torch.Tensor:
    """Mean divergence per position in nats, fp32; see the spec. Gradients flow into `student_PV`."""
    log_p_PV = log_probabilities(original_PV / spec.temperature)
    log_q_PV = torch.log_softmax(student_PV.float() / spec.temperature, dim=-1)
    if spec.top_k is not None and spec.top_k < log_p_PV.shape[1]:
        top_PK = log_p_PV.topk(spec.top_k, dim=-1).indices
        log_p_PV, log_q_PV = _with_rest(log_p_PV, top_PK), _with_rest(log_q_PV, top_PK)
    match spec.divergence:
        case "forward":
            return _kl(log_p_PV, log_q_PV)
        case "reverse":
            return _kl(log_q_PV, log_p_PV)
        case "mixed":
            return spec.mix * _kl(log_q_PV, log_p_PV) + (1 - spec.mix) * _kl(log_p_PV, log_q_PV)


def _kl(log_p_PV: torch.Tensor, log_q_PV: torch.Tensor) -> torch.Tensor:
    """Mean KL(p || q) over positions."""
    total = torch.nn.functional.kl_div(log_q_PV, log_p_PV, reduction="sum", log_target=True)
    return total / len(log_p_PV)


def _with_rest(log_p_PV: torch.Tensor, top_PK: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the tokens `top_PK` and of all others together, [P, K + 1]."""
    log_top_PK = log_p_PV.gather(1, top_PK)
    rest_P1 = (1 - log_top_PK.exp().sum(1, keepdim=True)).clamp(min=LEAST_REST)
    return torch.cat([log_top_PK, rest_P1.log()], dim=1)
