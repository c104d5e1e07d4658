"""Spec, the frozen plain-data base of everything that can be said, and its canonical JSON."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """Plain, frozen, closed data: unknown fields are errors, equal dumps mean equal computations."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


def canonical_json(document: Any) -> str:
    """One spelling per JSON document: sorted keys, no spaces, NaN and infinity refused (ValueError)."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_of(document: Any) -> str:
    """sha256 of the canonical JSON of a document, in lower-case hex."""
    return hashlib.sha256(canonical_json(document).encode()).hexdigest()
