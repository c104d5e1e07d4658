"""What every sensitivity metric returns for one (unit, format), and the refusal of scores that mean nothing.

P predicted positions, D documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from schemas.errors import InputError
from schemas.format import read_format
from steps.model.positions import Positions
from steps.model.structure import expert_role
from steps.step import Output
from steps.verify.metrics import document_means, weighted_mean


def score_output(
    item_meta: Mapping[str, Any], damage_P: torch.Tensor, positions: Positions, changed: bool, noise: float = 0.0
) -> Output:
    """meta unit, format (name), score (per predicted position), documents (means) and weights (tokens).

    InputError when a value is not finite, or when none exceeds `noise` (what the metric shows for the unchanged model)
    although the weights `changed`: then the metric never saw the unit. An expert may score 0: no token reached it.
    """
    _check(item_meta, damage_P, changed, "at every token", noise)
    documents, weights = document_means(damage_P, positions)
    return _output(item_meta, weighted_mean(documents, weights), documents, weights)


def document_score(item_meta: Mapping[str, Any], damage_D: torch.Tensor, weights: list[int], changed: bool) -> Output:
    """The same from means per document and their weights in tokens."""
    _check(item_meta, damage_D, changed, "in every document")
    documents = [float(value) for value in damage_D]
    return _output(item_meta, weighted_mean(documents, weights), documents, weights)


def plain_score(item_meta: Mapping[str, Any], damage: float, changed: bool) -> Output:
    """The same of a metric that does not tell documents apart; `documents` and `weights` are empty."""
    _check(item_meta, torch.tensor([damage], dtype=torch.float64), changed, "")
    return _output(item_meta, damage, [], [])


def _check(
    item_meta: Mapping[str, Any], damage: torch.Tensor, changed: bool, everywhere: str, noise: float = 0.0
) -> None:
    where = f"unit {item_meta['unit']} in {read_format(item_meta['format']).name}"
    bad = len(damage) - int(torch.isfinite(damage).sum())
    if bad:
        raise InputError(
            "a sensitivity score is not finite",
            where=where,
            got=f"NaN or infinity {bad} of {len(damage)} times",
            fix="check the candidate's scales and the model's weights; the model may overflow fp32 on this text",
        )
    reaches = expert_role(item_meta["unit"]) is None  # that no token is routed to an expert can be true
    if reaches and changed and damage.max() <= noise:
        raise InputError(
            f"a sensitivity score is zero {everywhere}".rstrip() + " although the weights changed",
            where=where,
            fix=f"the unit does not reach the model's output: leave it as it is with `keep: [{item_meta['unit']}]`",
        )


def _output(item_meta: Mapping[str, Any], score: float, documents: list[float], weights: list[int]) -> Output:
    name = read_format(item_meta["format"]).name
    unit = item_meta["unit"]
    return Output(meta={"unit": unit, "format": name, "score": score, "documents": documents, "weights": weights})
