"""Scores relative to a plan (steps/sensitivity/rescore.py) as a table of a program: nothing negative, and an offset.

Among other quantized units a unit may be better off quantized than not, since errors cancel. As each unit gets exactly
one format, its scores matter only up to a constant, which is moved into the offset. U units, C formats, D documents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steps.allocate.problem import Floats

Metas = Mapping[str, Mapping[str, Any]]


def offset(scored: Metas) -> tuple[float, Floats | None]:
    """KL of the plan that scores are relative to, minus its scores; (0, None) for scores relative to the original."""
    own = [meta for meta in scored.values() if "around" in meta]
    if not own:
        return 0.0, None
    whole = own[0]["around"]
    sum_D = np.sum([meta["documents"] for meta in own], axis=0)
    return float(whole["kl"]) - math.fsum(meta["score"] for meta in own), np.array(whole["documents"]) - sum_D


def settled(scored: Metas) -> dict[str, Mapping[str, Any]]:
    """Without the formats that the second round did not score, and, for a unit that its text never reached, without
    all but the plan's own: nothing was learned about it."""
    offered = {name: meta for name, meta in scored.items() if meta["score"] is not None}
    if not any("around" in meta for meta in offered.values()):
        return offered
    seen = {str(meta["unit"]) for meta in offered.values() if meta["score"] != 0}
    return {name: meta for name, meta in offered.items() if meta["unit"] in seen or "around" in meta}


def lifted(score_UC: Floats, present_UC: NDArray[np.bool_]) -> Floats:
    """What to take from each unit's scores so that none is below 0, [U]; never positive."""
    least_U = np.where(present_UC, score_UC, np.inf).min(axis=1)
    low_U: Floats = np.minimum(least_U, 0.0)
    return low_U
