"""What a refinement did, for the report: both losses, check by check, and how far they are apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.run import Runner
from schemas.distill import Annealed, Box, Distill, Logits, Reconstruct, Training, Whole
from schemas.refined import Check, Distilled, DistilledBlock, Recoded

SOFT = (Box, Annealed)
"""Codes that are between two levels while they are trained; held-out windows see them rounded."""


def distilled_of(runner: Runner, selection: Mapping[str, Any]) -> Distilled | None:
    """From the meta of the final selection; None when nothing was trained."""
    facts = selection.get("distilled")
    if not facts:
        return None
    specs = [b.node.spec for b in runner.bound if isinstance(b.node.spec, Distill | Reconstruct)]
    alike = bool(specs) and comparable(specs[-1])
    blocks = tuple(_block(each, alike) for each in facts.get("blocks", ()))
    given = {name: facts[name] for name in Distilled.model_fields if name in facts and name != "blocks"}
    return Distilled(**given, blocks=blocks, gap=_gap(facts.get("curve", ()), facts["step_kept"]) if alike else None)


def recoded_of(selection: Mapping[str, Any]) -> Recoded | None:
    """From the meta of the final selection; None when codes are as the solver chose them."""
    facts = selection.get("recoded")
    return None if not facts else Recoded(**{name: facts[name] for name in Recoded.model_fields})


def comparable(spec: Training) -> bool:
    """Whether training loss and held-out loss are the same quantity: of blocks they are, of codes that are not soft."""
    if spec.rates.codes is not None and isinstance(spec.codes, SOFT):
        return False
    whole = isinstance(spec, Distill) and isinstance(spec.scope, Whole)
    return not whole or spec.objective == (Logits(kind="logits"),)  # type: ignore[attr-defined]


def _block(facts: Mapping[str, Any], alike: bool) -> DistilledBlock:
    given = {name: facts[name] for name in DistilledBlock.model_fields if name in facts}
    return DistilledBlock(**given, gap=_gap(facts.get("curve", ()), facts["step_kept"]) if alike else None)


def _gap(curve: Sequence[Check], kept: int) -> float | None:
    checks = [check for check in curve if "train" in check and "held_out" in check]
    at = next((check for check in checks if check["step"] == kept), checks[-1] if checks else None)
    return at["held_out"] - at["train"] if at else None
