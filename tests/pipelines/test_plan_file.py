"""A plan file in a recipe: every way it can be written, and what is wrong with one that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.plan_file import read_plan, with_plan
from schemas.errors import InputError

PLAN = {"layers.0.mlp.down": "int3-g32", "layers.0.mlp.gate_up": "int4-g64"}
ROWS = [{"unit": unit, "format": fmt, "bytes": 1, "score": 0.1} for unit, fmt in PLAN.items()]


@pytest.mark.parametrize("document", [PLAN, {"plan": PLAN}, {"allocation": {"plan": PLAN}}, {"allocation": ROWS}, ROWS])
def test_every_way_it_is_written(tmp_path: Path, document: Any) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(document))
    assert read_plan(path) == PLAN
    recipe = {"name": "x", "allocator": {"kind": "given", "file": str(path)}}
    assert with_plan(recipe) == {"name": "x", "allocator": {"kind": "given", "plan": PLAN}}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "{}",
        '{"a": 3}',
        '{"allocation": null}',
        '{"a": "int3-g32", "a": "int4-g64"}',
        json.dumps([*ROWS, ROWS[0]]),
    ],
)
def test_what_is_no_plan_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"plan\.json"):
        read_plan(path)


def test_other_recipes_are_left_alone(tmp_path: Path) -> None:
    for recipe in ({"allocator": {"kind": "ilp"}}, {"allocator": {"kind": "given", "plan": PLAN}}, {"nodes": {}}):
        assert with_plan(recipe) == recipe
    with pytest.raises(InputError, match="No such file"):
        with_plan({"allocator": {"kind": "given", "file": str(tmp_path / "none.json")}})
