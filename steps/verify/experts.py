"""How much calibration text each quantized expert of a build saw. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from schemas.report import ExpertCoverage
from steps.model.structure import expert_role


def expert_coverage(selection: Mapping[str, Any]) -> ExpertCoverage | None:
    """Over the experts of a selection's items (by unit); None when it has none, or does not say what they saw."""
    tokens: dict[str, int] = {}
    own: list[float] = []
    for item in selection.values():
        for member, facts in item.meta.get("members", {}).items():
            if expert_role(member) is not None and "own" in facts:
                tokens[member.rpartition(".")[0]] = int(facts["tokens"])
                own.append(float(facts["own"]))
    if not tokens:
        return None
    counts = sorted(tokens.values())
    return ExpertCoverage(
        experts=len(counts),
        without_tokens=counts.count(0),
        fewest=counts[0],
        median=counts[len(counts) // 2],
        least_own=min(own),
    )
