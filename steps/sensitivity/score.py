"""What every sensitivity metric returns for one (unit, format), and the refusal of scores that mean nothing.

P predicted positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from schemas.errors import InputError
from schemas.quantize import Format
from steps.model.positions import Positions
from steps.step import Output
from steps.verify.metrics import document_means, weighted_mean


def score_output(
    item_meta: Mapping[str, Any], damage_P: torch.Tensor, positions: Positions, changed: bool, noise: float = 0.0
) -> Output:
    """meta unit, format (name), score (nats per predicted position), documents (means) and weights (tokens).

    InputError when a value is not finite, or when none exceeds `noise` (what the metric shows for the unchanged model)
    although the weights `changed`: then the metric never saw the unit.
    """
    unit, name = item_meta["unit"], Format.model_validate(item_meta["format"]).name
    bad = len(damage_P) - int(torch.isfinite(damage_P).sum())
    if bad:
        raise InputError(
            "a sensitivity score is not finite",
            where=f"unit {unit} in {name}",
            got=f"NaN or infinity at {bad} of {len(damage_P)} tokens",
            fix="check the candidate's scales and the model's weights; the model may overflow fp32 on this text",
        )
    if changed and damage_P.max() <= noise:
        raise InputError(
            "a sensitivity score is zero at every token although the weights changed",
            where=f"unit {unit} in {name}",
            fix="the unit does not reach the model's output: pin its format instead of scoring it",
        )
    documents, weights = document_means(damage_P, positions)
    score = weighted_mean(documents, weights)
    return Output(meta={"unit": unit, "format": name, "score": score, "documents": documents, "weights": weights})
