"""Experts that no token of the scoring text was routed to: what their scores are taken to be.

Torch-free.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from schemas.artifact import unit_name
from schemas.errors import InputError
from steps.model.structure import expert_role

Metas = Mapping[str, Mapping[str, Any]]
"""Item name -> meta."""


def with_unreached(scored: Metas, candidates: Metas) -> tuple[dict[str, Mapping[str, Any]], tuple[str, ...]]:
    """The scores, with those of experts that are zero in every format filled in, and a note if there are any.

    A token through such an expert is taken to cost what it costs on average through the other experts of the layer, and
    the expert to be reached as often as the calibration text reached it, at least once.
    """
    rates: dict[tuple[str, str], list[tuple[Mapping[str, Any], int]]] = {}
    largest: dict[str, float] = {}
    for item, meta in scored.items():
        largest[unit_name(item)] = max(largest.get(unit_name(item), 0.0), abs(float(meta["score"])))
    unreached = [unit for unit, score in largest.items() if score == 0 and expert_role(unit) is not None]
    if not unreached:
        return dict(scored), ()
    for item, meta in scored.items():
        role = expert_role(unit_name(item))
        if role is not None and largest[unit_name(item)] > 0:
            rates.setdefault((role, str(meta["format"])), []).append((meta, _tokens(candidates[item])))
    found = dict(scored)
    for item, meta in scored.items():
        if unit_name(item) in unreached:
            siblings = rates.get((str(expert_role(unit_name(item))), str(meta["format"])))
            found[item] = {**meta, **_as_siblings(item, siblings, _tokens(candidates[item]))}
    shown = ", ".join(unreached[:4]) + (f" and {len(unreached) - 4} more" if len(unreached) > 4 else "")
    return found, (f"no token of the scoring text reached {shown}: scored as the layer's other experts are per token",)


def _as_siblings(
    item: str, siblings: list[tuple[Mapping[str, Any], int]] | None, tokens: int
) -> dict[str, float | list[float]]:
    if not siblings:
        raise InputError(
            "no expert of a layer was reached by the scoring text",
            where=item,
            wanted="tokens that are routed to some of them",
            fix="score with more windows (text.score_windows)",
        )
    share = max(tokens, 1) / sum(max(count, 1) for _, count in siblings)
    documents = zip(*(meta["documents"] for meta, _ in siblings), strict=True)
    return {
        "score": share * sum(float(meta["score"]) for meta, _ in siblings),
        "documents": [share * sum(values) for values in documents],
    }


def _tokens(meta: Mapping[str, Any]) -> int:
    """Calibration tokens that the candidate's matrices saw."""
    return min((int(member.get("tokens", 1)) for member in meta["members"].values()), default=1)
