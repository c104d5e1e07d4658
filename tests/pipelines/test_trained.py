"""When training loss and held-out loss may be compared, and where."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.methods.refine import refinement_of
from pipelines.trained import comparable, distilled_of
from schemas.distill import Distill, Reconstruct
from schemas.recipe import Recipe


@pytest.mark.parametrize(
    ("method", "alike"),
    [
        ("latent", True),
        ("scales", True),
        ("autoround", True),  # block by block: both are the block's error
        ("adaquant", True),
        ("discquant", False),  # soft codes
        ("pdquant", False),
        ("bitdistiller", False),  # forward and reverse KL, judged by forward KL
    ],
)
def test_losses_of_different_quantities_are_not_compared(method: Any, alike: bool) -> None:
    assert comparable(refinement_of(method)) == alike


class Bound:
    def __init__(self, spec: Any) -> None:
        self.node = type("Node", (), {"spec": spec})


class Runner:
    """Of a recipe that trains as the spec says."""

    recipe: Recipe

    def __init__(self, spec: Any) -> None:
        self.bound = [Bound(spec)]


CURVE = [
    {"step": 0, "held_out": 5.0},
    {"step": 4, "held_out": 4.0, "train": 3.5},
    {"step": 8, "held_out": 4.5, "train": 3},
]


def facts(kept: int, **more: Any) -> dict[str, Any]:
    return {"before": 5.0, "after": 4.0, "step_kept": kept, "tokens": 9, "passes": 1.0, "measure": "KL", **more}


def test_the_gap_is_that_of_the_step_kept_or_of_the_last_check() -> None:
    runner: Any = Runner(Distill(step="distill"))
    for kept, gap in ((4, 0.5), (8, 1.5), (0, 1.5)):
        found = distilled_of(runner, {"distilled": facts(kept, curve=CURVE)})
        assert found is not None and found.gap == gap and len(found.curve) == 3
    assert distilled_of(runner, {}) is None


def test_every_block_has_its_curve_and_its_gap() -> None:
    blocks = [{"first_block": k, **facts(4 * k, curve=CURVE)} for k in range(3)]
    found = distilled_of(Runner(Reconstruct(step="reconstruct")), {"distilled": facts(12, blocks=blocks)})  # type: ignore[arg-type]
    assert found is not None and found.gap is None and found.curve == ()
    assert [block.gap for block in found.blocks] == [1.5, 0.5, 1.5] and found.blocks[2].first_block == 2
