"""Experts that no scoring token reached: their scores follow from the layer's others, and are said to."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.errors import InputError
from steps.allocate.unreached import with_unreached


def metas(
    scores: dict[str, tuple[float, int]], fmt: str = "int4-g32"
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Scores and candidates by item: unit -> (score, calibration tokens)."""
    scored = {
        f"{u}/{fmt}": {"unit": u, "format": fmt, "score": s, "documents": [s, 3 * s]} for u, (s, _) in scores.items()
    }
    seen = {f"{u}/{fmt}": {"unit": u, "members": {f"model.{u}": {"tokens": t}}} for u, (_, t) in scores.items()}
    return scored, seen


def expert(number: int, role: str = "down", layer: int = 0) -> str:
    return f"layers.{layer}.mlp.experts.{number}.{role}"


def test_an_expert_costs_per_token_what_the_others_of_its_layer_cost() -> None:
    scored, seen = metas(
        {
            expert(0): (0.3, 100),
            expert(1): (0.1, 300),
            expert(2): (0.0, 20),
            expert(3): (0.0, 0),
            expert(2, "gate_up"): (5.0, 20),
            expert(0, layer=1): (9.0, 1),
            "layers.0.self_attn.o": (0.0, 400),
        }
    )
    found, (note,) = with_unreached(scored, seen)
    assert found[f"{expert(2)}/int4-g32"]["score"] == pytest.approx(0.4 / 400 * 20)
    assert found[f"{expert(2)}/int4-g32"]["documents"] == pytest.approx([0.4 / 400 * 20, 1.2 / 400 * 20])
    assert found[f"{expert(3)}/int4-g32"]["score"] == pytest.approx(0.4 / 400)  # as if reached once
    untouched = [name for name in scored if name not in (f"{expert(2)}/int4-g32", f"{expert(3)}/int4-g32")]
    assert all(found[name] == scored[name] for name in untouched)
    assert expert(2) in note and expert(3) in note and expert(0) not in note


def test_nothing_is_said_where_every_expert_was_reached() -> None:
    scored, seen = metas({expert(0): (0.3, 100), expert(1): (0.1, 300)})
    assert with_unreached(scored, seen) == (scored, ())


def test_a_layer_that_no_token_reached_is_refused() -> None:
    scored, seen = metas({expert(0): (0.0, 3), expert(1): (0.0, 0), expert(0, layer=1): (1.0, 5)})
    with pytest.raises(InputError, match=r"no expert of a layer was reached(?s:.*)layers\.0\.mlp\.experts\.0"):
        with_unreached(scored, seen)
