"""What a build must meet to be promoted, each condition one row. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from schemas.report import Contrast, ExpertCoverage, GateRow
from schemas.verify import Gates

NAMED = 5
"""Tensors a failed gate names; the verdict's meta has all."""


@dataclass(frozen=True)
class Facts:
    """What the gates look at. `against_uniform` is None when it was not measured; `has_uniform` says whether a uniform
    format exists within the budget at all."""

    kl: float
    actual_bytes: int
    predicted_bytes: int
    different_weights: Sequence[str]
    damping: float
    against_uniform: Contrast | None
    has_uniform: bool
    experts: ExpertCoverage | None = None


def judge(gates: Gates, facts: Facts) -> list[GateRow]:
    """All gates in a fixed order; limits that the spec leaves out have no row."""
    return [
        _weights_match(facts.different_weights),
        _equal("size_as_predicted", facts.predicted_bytes, facts.actual_bytes),
        *_at_most("max_kl", gates.max_kl, facts.kl),
        *_at_most("max_bytes", gates.max_bytes, facts.actual_bytes),
        *_at_most("max_damping", gates.max_damping, facts.damping),
        *_expert_tokens(gates.min_expert_tokens, facts.experts),
        *([_beats_uniform(facts)] if gates.beats_uniform else []),
    ]


def largest_damping(selection: Mapping[str, Any]) -> float:
    """The largest Hessian damping that any linear of a selection's items (by unit) needed; 0 when none had any."""
    members = (m for item in selection.values() for m in item.meta.get("members", {}).values())
    return max((float(m.get("damping", 0.0)) for m in members), default=0.0)


def _weights_match(different: Sequence[str]) -> GateRow:
    shown = ", ".join(different[:NAMED]) + (", ..." if len(different) > NAMED else "")
    value = f"{len(different)} different: {shown}" if different else "all equal"
    return GateRow(name="weights_match", limit="all equal", value=value, passed=not different)


def _equal(name: str, limit: int, value: int) -> GateRow:
    return GateRow(name=name, limit=limit, value=value, passed=value == limit)


def _at_most(name: str, limit: float | None, value: float) -> list[GateRow]:
    return [] if limit is None else [GateRow(name=name, limit=limit, value=value, passed=value <= limit)]


def _expert_tokens(limit: int | None, experts: ExpertCoverage | None) -> list[GateRow]:
    """No row for a dense model: it has no expert that could have seen too little."""
    if limit is None or experts is None:
        return []
    return [GateRow(name="min_expert_tokens", limit=limit, value=experts.fewest, passed=experts.fewest >= limit)]


def _beats_uniform(facts: Facts) -> GateRow:
    """The upper end of KL(allocated) - KL(uniform), paired over documents, must be below 0.

    Passed with no value when no uniform format fits the budget: there is nothing to beat. Failed with no value when
    one fits and was not measured.
    """
    name, limit = "beats_uniform", 0.0
    if facts.against_uniform is not None:
        high = facts.against_uniform.difference.high
        return GateRow(name=name, limit=limit, value=high, passed=high < limit)
    return GateRow(name=name, limit=limit, value=None, passed=not facts.has_uniform)
