"""Plans that are not solved for: given, uniform, random; and the selection of a plan's candidates."""

from __future__ import annotations

from typing import Any

import pytest
from allocation import UNIT, allocated, exact_file, spec, step_inputs

from schemas.allocate import Select
from schemas.errors import InputError
from steps.allocate import given, select
from steps.allocate.run import allowed_of, sizing_of
from steps.allocate.table import read
from steps.step import Env, Output


def selected(plan: dict[str, Any], which: str = "plan") -> Output:
    inputs = {"candidates": step_inputs()["candidates"], "plan": Output(meta=plan)}
    return select.run(Select.model_validate({"step": "select", "plan": which}), inputs, Env())["selection"]


@pytest.mark.parametrize("which", ["plan", "uniform", "greedy"])
def test_select_takes_the_chosen_candidates(which: str) -> None:
    meta = allocated()
    found = selected(meta, which)
    assert found.meta == {"plan": meta[which]}
    assert {u: c.meta["format"]["bits"] for u, c in found.children.items()} == {
        u: int(f[3]) for u, f in meta[which].items()
    }


def test_selecting_a_baseline_that_does_not_exist_is_empty() -> None:
    assert selected({"plan": {}, "uniform": None}, "uniform") == Output(meta={"plan": None})
    with pytest.raises(InputError, match="plan is empty"):
        selected({"plan": None})


def test_a_foreign_plan_is_refused() -> None:
    plan = allocated()["plan"]
    with pytest.raises(InputError, match="not of these candidates") as error:
        selected({"plan": {k: v for k, v in plan.items() if k != UNIT} | {"layers.9.mlp.down": "int4-g64"}})
    assert UNIT in error.value.got and "layers.9.mlp.down" in error.value.got
    with pytest.raises(InputError, match="no candidate of") as error:
        selected({"plan": plan | {UNIT: "int5-g64"}})
    assert error.value.where == UNIT and "int4-g64" in error.value.wanted


def given_plan(**changes: str) -> dict[str, Any]:
    plan = {**allocated()["plan"], **{name.replace("__", "."): fmt for name, fmt in changes.items()}}
    return {"kind": "given", "plan": plan}


def test_a_plan_that_is_given_is_taken_as_it_is_with_its_baselines() -> None:
    best = allocated()
    mine = given_plan(**{UNIT.replace(".", "__"): "int2-g32"})
    meta = allocated(allocator=mine)
    assert meta["plan"] == mine["plan"] and meta["uniform"] == best["uniform"] and meta["greedy"] == best["greedy"]
    assert meta["certificate"]["bound"] <= best["predicted_kl"]["plan"] <= meta["predicted_kl"]["plan"]
    assert meta["bytes"]["plan"] == exact_file(mine["plan"])
    assert allocated(allocator=given_plan())["certificate"]["gap"] <= 0.02  # the bound is that of the relaxation


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        ({"layers.9.mlp.down": "int3-g32"}, "unknown: layers.9.mlp.down"),
        ({UNIT: None}, f"left out: {UNIT}"),
        ({UNIT: "int5-g32"}, f"{UNIT}: int5-g32"),
        ({"layers.0.mlp.gate_up": "int8-row", UNIT: "int8-row", "layers.1.mlp.down": "int8-row"}, "bytes, limit"),
    ],
)
def test_a_plan_edited_by_hand_that_does_not_fit_is_refused(edit: dict[str, str | None], says: str) -> None:
    plan = {unit: fmt for unit, fmt in {**allocated()["plan"], **edit}.items() if fmt is not None}
    with pytest.raises(InputError, match=says) as error:
        allocated(allocator={"kind": "given", "plan": plan})
    assert "allocator.plan" in str(error.value)


def before_anything(plan: dict[str, str], budget: dict[str, Any] | None = None, **fields: Any) -> None:
    """Check a plan as pre-flight does."""
    inputs, asked = step_inputs(), spec(budget, **fields)
    table = read(inputs["scores"], inputs["candidates"], inputs["model"])
    given.check(plan, sizing_of(table, asked, inputs["model"]), allowed_of(table, asked), asked.budget)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        ({"layers.9.mlp.down": "int3-g32"}, "unknown: layers.9.mlp.down"),
        ({UNIT: None}, f"left out: {UNIT}"),
        ({UNIT: "int5-g32"}, f"{UNIT}: int5-g32"),
        ({"layers.0.mlp.gate_up": "int8-row", UNIT: "int8-row", "layers.1.mlp.down": "int8-row"}, "limit 3.5"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_computed(edit: dict[str, str | None], says: str) -> None:
    plan = allocated()["plan"]
    before_anything(plan)
    with pytest.raises(InputError) as error:
        before_anything({unit: fmt for unit, fmt in {**plan, **edit}.items() if fmt is not None})
    assert error.value.where == "allocator.plan" and says in error.value.got


def test_pins_and_parts_are_looked_at_beforehand_as_well() -> None:
    plan = allocated()["plan"]
    with pytest.raises(InputError, match="format not allowed"):
        before_anything(plan, pins=[{"units": UNIT, "exclude": [plan[UNIT]]}])
    size = sum(row["bytes"] for row in allocated()["rows"] if row["unit"].startswith("layers.0."))
    before_anything(plan, {"parts": [{"units": "layers.0.*", "bytes": size}]})
    with pytest.raises(InputError, match=f"{size} bytes, limit {size - 1}"):
        before_anything(plan, {"parts": [{"units": "layers.0.*", "bytes": size - 1}]})


def test_a_given_plan_keeps_to_the_pins() -> None:
    with pytest.raises(InputError, match="format not allowed"):
        allocated(allocator=given_plan(), pins=[{"units": UNIT, "exclude": [allocated()["plan"][UNIT]]}])


def test_a_uniform_allocator_takes_no_more_than_the_budget() -> None:
    uniform = allocated(allocator={"kind": "uniform", "format": "int3-g64"})
    assert set(uniform["plan"].values()) == {"int3-g64"}
    with pytest.raises(InputError, match="does not fit the budget"):
        allocated(allocator={"kind": "uniform", "format": "int8-row"})
    with pytest.raises(InputError, match="not offered"):
        allocated(allocator={"kind": "uniform", "format": "int5-g32"})


def test_random_plans_differ_by_seed_and_by_nothing_else() -> None:
    plans = [allocated(allocator={"kind": "random", "seed": seed})["plan"] for seed in (0, 0, 1)]
    assert plans[0] == plans[1] != plans[2]
