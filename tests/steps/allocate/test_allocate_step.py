"""The step itself, on a cost table of a small model: sizes, baselines, evidence, errors, and selection."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
from allocation import FORMATS, model, step_inputs

from schemas.allocate import Allocate, Allocator, Select
from schemas.base import canonical_json
from schemas.errors import InputError
from schemas.format import read_format
from steps.allocate import plan as plan_module
from steps.allocate import select
from steps.allocate.run import run
from steps.pack.sizes import file_bytes, linear_bytes
from steps.step import Env, Output

UNIT = "layers.0.mlp.down"


def spec(budget: dict[str, Any] | None = None, **fields: Any) -> Allocate:
    whole = {"step": "allocate", "budget": budget or {"bits_per_weight": 3.5}, "bootstrap": 20, **fields}
    return Allocate.model_validate(whole)


def allocated(inputs: dict[str, Output] | None = None, budget: dict[str, Any] | None = None, **fields: Any) -> Any:
    return run(spec(budget, **fields), inputs or step_inputs(), Env())["plan"].meta


def changed(edit: Callable[[str, dict[str, Any]], None], port: str = "scores") -> dict[str, Output]:
    """Step inputs with the meta of every item of a port edited in place."""
    inputs = step_inputs()
    children = {}
    for name, child in inputs[port].children.items():
        meta = json.loads(json.dumps(child.meta))
        edit(name, meta)
        children[name] = Output(meta=meta)
    return inputs | {port: Output(children=children)}


def exact_file(plan: dict[str, str]) -> int:
    meta = model().meta
    linears = {}
    for unit, name in plan.items():
        block, part = unit.split(".", 2)[1:]
        members = {"qkv": "q_proj k_proj v_proj", "o": "o_proj", "gate_up": "gate_proj up_proj", "down": "down_proj"}
        group, short = part.split(".")
        for member in members[short].split():
            linears[f"model.layers.{block}.{group}.{member}"] = read_format(name)
    shapes = {n: tuple(s) for n, s in meta["shapes"].items()}
    return file_bytes("compressed-tensors", meta["config"], shapes, meta["dtypes"], linears)


def test_the_plan_and_its_evidence() -> None:
    meta = allocated()
    evidence = meta["certificate"]
    assert set(meta["plan"]) == set(meta["uniform"]) == set(meta["greedy"]) and len(meta["plan"]) == 8
    assert set(meta["uniform"].values()) == {meta["uniform_format"]} == {"int3-g64"}
    assert meta["predicted_kl"]["plan"] <= meta["predicted_kl"]["greedy"] <= meta["predicted_kl"]["uniform"]
    assert meta["predicted_kl"]["uniform"] < evidence["baselines"]["random"]["mean_score"]
    assert evidence["gap"] <= 1e-4 and evidence["bound"] <= evidence["objective"]
    assert sum(r["score"] for r in meta["rows"]) == pytest.approx(meta["predicted_kl"]["plan"], rel=1e-12)
    assert [r["unit"] for r in meta["rows"]] == list(meta["plan"])
    assert meta["bytes"] == {name: exact_file(meta[name]) for name in ("plan", "uniform", "greedy")}
    limit = evidence["limits"][0]
    assert limit["used"] == sum(r["bytes"] for r in meta["rows"]) <= limit["limit"]
    assert evidence["notes"] == []
    json.loads(canonical_json(meta))


def test_bytes_of_rows_are_the_packers() -> None:
    row = next(r for r in allocated()["rows"] if r["unit"] == UNIT)
    assert row["bytes"] == linear_bytes("compressed-tensors", read_format(row["format"]), (128, 256))


def test_the_same_inputs_give_the_same_bytes() -> None:
    reversed_inputs = step_inputs()
    for port in ("scores", "candidates"):
        children = dict(reversed(list(reversed_inputs[port].children.items())))
        reversed_inputs[port] = Output(children=children)
    texts = [canonical_json(allocated(inputs)) for inputs in (None, None, reversed_inputs)]
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize("bytes_over", [0, 1, 37, 1001])
def test_a_file_limit_is_met_to_the_byte(bytes_over: int) -> None:
    """The header counts, and depends on the plan."""
    least = allocated()["certificate"]["achievable"]["file_bytes"][0]
    meta = allocated(budget={"bytes": least + bytes_over})
    assert exact_file(meta["plan"]) == meta["bytes"]["plan"] <= least + bytes_over
    assert meta["certificate"]["budget"] == [
        {"name": "bytes", "limit": least + bytes_over, "used": meta["bytes"]["plan"]}
    ]


def test_bits_over_the_file_count_everything() -> None:
    meta = allocated(budget={"bits_per_weight": 4.6, "over": "file"})
    weights = sum(int(np.prod(s)) for s in model().meta["shapes"].values())
    assert 8 * meta["bytes"]["plan"] / weights <= 4.6
    assert 8 * meta["bytes"]["plan"] / weights > 4.4


def test_limits_together_all_hold() -> None:
    alone = allocated(budget={"bits_per_weight": 4.0})
    both = allocated(budget={"bits_per_weight": 4.0, "bytes": alone["bytes"]["plan"] - 5000})
    assert both["bytes"]["plan"] <= alone["bytes"]["plan"] - 5000
    assert len(both["certificate"]["budget"]) == 2


def test_a_plan_is_solved_again_when_its_header_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Headers that grow with the plan by far more than any real one: still within the limit, still solved."""
    real = plan_module.Sizing.file
    least = allocated()["certificate"]["achievable"]["file_bytes"][0]

    def bloated(self: Any, plan: Any) -> int:
        return real(self, plan) + 40 * sum(int(f[3]) for f in plan.values())

    monkeypatch.setattr(plan_module.Sizing, "file", bloated)
    meta = allocated(budget={"bytes": least + 30_000})
    assert meta["bytes"]["plan"] <= least + 30_000
    assert meta["bytes"]["greedy"] <= least + 30_000


def test_bytes_are_minimised_under_a_predicted_kl() -> None:
    kl = allocated(budget={"bits_per_weight": 3.5})["predicted_kl"]["plan"]
    meta = allocated(budget={"max_predicted_kl": kl})
    evidence = meta["certificate"]
    assert evidence["minimise"] == "bytes" and meta["predicted_kl"]["plan"] <= kl * (1 + 1e-9)
    assert meta["bytes"]["plan"] <= allocated(budget={"bits_per_weight": 3.5})["bytes"]["plan"]
    assert sum(r["bytes"] for r in meta["rows"]) == evidence["objective"]
    assert meta["bytes"]["greedy"] <= meta["bytes"]["plan"] + 64  # same bytes of linears; headers differ
    assert evidence["shadow_price"]["kl_per_byte"] > 0


def test_an_impossible_kl_names_the_least() -> None:
    with pytest.raises(InputError, match="no plan meets") as error:
        allocated(budget={"max_predicted_kl": 1e-9})
    least = float(error.value.wanted.removeprefix("at least ").split()[0])
    assert allocated(budget={"max_predicted_kl": least * 1.001})["predicted_kl"]["plan"] <= least * 1.001
    with pytest.raises(InputError, match="both max_predicted_kl"):
        allocated(budget={"max_predicted_kl": least * 1.001, "bits_per_weight": 3.5})


def test_no_uniform_format_in_the_budget() -> None:
    """Each format is too slow on some shape, so only mixed plans are fast enough."""
    slow = {"int2-g32": (128, 128), "int8-row": (128, 256)}
    shapes = [(128, 128), (64, 128), (256, 128), (128, 256)]
    timings = [{"shape": s, "format": f, "microseconds": 10 if s == slow[f] else 1} for s in shapes for f in slow]
    latency = {"microseconds": 20, "timings": timings}
    meta = allocated(step_inputs(formats=tuple(slow)), {"bits_per_weight": 6, "latency": latency})
    assert meta["uniform"] is meta["uniform_format"] is meta["bytes"]["uniform"] is None
    assert meta["predicted_kl"]["uniform"] is meta["certificate"]["baselines"]["uniform"] is None
    assert meta["certificate"]["uniform_minus_plan"] is None
    assert {meta["plan"]["layers.0.self_attn.o"], meta["plan"]["layers.0.mlp.down"]} == {"int8-row", "int2-g32"}
    assert set(meta["greedy"]) == set(meta["plan"])


def test_pins_hold_in_the_plan_and_in_both_baselines() -> None:
    pins = [{"units": "*.down", "formats": ["int8-row"]}, {"units": "model.layers.0.self_attn.q_proj", "min_bits": 4}]
    meta = allocated(budget={"bits_per_weight": 5.0}, pins=pins)
    for name in ("plan", "uniform", "greedy"):
        assert meta[name]["layers.1.mlp.down"] == "int8-row"
        assert meta[name]["layers.0.self_attn.qkv"] in {"int4-g32", "int4-g64", "int6-g64", "int8-row"}
    uniform = meta["certificate"]["baselines"]["uniform"]
    assert "layers.1.mlp.down" in uniform["elsewhere"]
    assert meta["certificate"]["pins"][1]["matches"] == ["layers.0.self_attn.qkv"]


def test_parts_and_latency_are_rows() -> None:
    free = allocated(budget={"bits_per_weight": 4.0})
    first = sum(r["bytes"] for r in free["rows"] if r["unit"].startswith("layers.0."))
    part = {"units": "layers.0.*", "bytes": int(first * 0.8)}
    meta = allocated(budget={"bits_per_weight": 4.0, "parts": [part]})
    assert sum(r["bytes"] for r in meta["rows"] if r["unit"].startswith("layers.0.")) <= part["bytes"]
    assert meta["predicted_kl"]["plan"] > free["predicted_kl"]["plan"]
    row = meta["certificate"]["limits"][1]
    assert row["name"] == "parts[0] (layers.0.*)" and row["binds"] and row["slack"] >= 0

    shapes = [(128, 128), (64, 128), (256, 128), (128, 256)]
    timings = [{"shape": s, "format": f, "microseconds": 1.0 + int(f[3]) % 4} for s in shapes for f in FORMATS]
    meta = allocated(budget={"bits_per_weight": 4.0, "latency": {"microseconds": 30, "timings": timings}})
    assert meta["certificate"]["limits"][1]["used"] <= 30


def test_only_parts_or_one_format() -> None:
    meta = allocated(budget={"parts": [{"units": "layers.0.*", "bytes": 60_000}]})
    assert {f for u, f in meta["plan"].items() if u.startswith("layers.1.")} <= {"int6-g64", "int8-row"}
    assert meta["certificate"]["shadow_price"]["text"] == "not the size of the whole binds, but parts[0] (layers.0.*)"
    single = allocated(step_inputs(formats=("int4-g64",)), {"bits_per_weight": 4.5})
    assert single["plan"] == single["uniform"] == single["greedy"]


KINDS = [get_args(spec.model_fields["kind"].annotation)[0] for spec in get_args(get_args(Allocator)[0])]


@pytest.mark.parametrize("allocator", KINDS)
def test_every_allocator_runs_and_states_its_gap(allocator: str) -> None:
    extra: dict[str, Any] = {"rankcut": {"high": "int6-g64", "low": "int2-g32"}, "uniform": {"format": "int3-g64"}}
    extra["given"] = {"plan": allocated()["uniform"]}
    meta = allocated(allocator={"kind": allocator, **extra.get(allocator, {})})
    evidence = meta["certificate"]
    assert evidence["allocator"] == allocator and evidence["proof"]
    best = allocated()["predicted_kl"]["plan"]
    assert evidence["bound"] <= best * (1 + 1e-9) and meta["predicted_kl"]["plan"] >= best * (1 - 1e-4)
    assert evidence["gap"] == pytest.approx(1 - evidence["bound"] / meta["predicted_kl"]["plan"], abs=1e-9)


def test_more_bytes_buy_what_the_shadow_price_says() -> None:
    """At one more byte the relaxation moves by the price; over a real step the plan gains about as much."""
    low, high = allocated(budget={"bits_per_weight": 3.5}), allocated(budget={"bits_per_weight": 3.7})
    spent = sum(r["bytes"] for r in high["rows"]) - sum(r["bytes"] for r in low["rows"])
    gained = low["predicted_kl"]["plan"] - high["predicted_kl"]["plan"]
    prices = [m["certificate"]["shadow_price"]["kl_per_byte"] for m in (low, high)]
    assert 0.3 * prices[1] * spent <= gained <= 3 * prices[0] * spent
    assert "more buys" in low["certificate"]["shadow_price"]["text"]
    rich = allocated(budget={"bits_per_weight": 16})
    assert "does not bind" in rich["certificate"]["shadow_price"]["text"]


def test_stability_says_which_choices_the_documents_support() -> None:
    meta = allocated(bootstrap=40)
    stability = meta["certificate"]["stability"]
    assert stability["resamples"] == 40 and stability["documents"] == 12
    for unit, row in stability["units"].items():
        assert sum(row["shares"].values()) == pytest.approx(1, abs=1e-5)
        assert row["agrees"] == row["shares"].get(meta["plan"][unit], 0.0)
    assert 0.2 < stability["agreement"] <= 1
    interval = meta["certificate"]["predicted_interval"]
    assert interval["low"] < meta["predicted_kl"]["plan"] == interval["value"] < interval["high"]
    assert meta["certificate"]["uniform_minus_plan"]["value"] > 0


def test_identical_documents_leave_no_doubt() -> None:
    def same(name: str, meta: dict[str, Any]) -> None:
        meta["documents"] = [meta["score"]] * len(meta["documents"])

    stability = allocated(changed(same))["certificate"]["stability"]
    assert stability["agreement"] == 1.0


def test_without_documents_there_is_no_stability() -> None:
    def bare(name: str, meta: dict[str, Any]) -> None:
        meta["documents"], meta["weights"] = [], []

    assert allocated(changed(bare))["certificate"]["stability"] is None
    assert allocated(bootstrap=0)["certificate"]["predicted_interval"] is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.5])
def test_bad_scores_name_the_unit(value: float) -> None:
    def spoil(name: str, meta: dict[str, Any]) -> None:
        if name == f"{UNIT}/int3-g64":
            meta["score"] = value

    with pytest.raises(InputError, match="score") as error:
        allocated(changed(spoil))
    assert error.value.where == UNIT and "int3-g64" in error.value.got


def test_a_unit_whose_scores_are_all_zero() -> None:
    def silence(name: str, meta: dict[str, Any]) -> None:
        if name.startswith(UNIT):
            meta["score"] = 0.0

    with pytest.raises(InputError, match="all scores of a unit are zero") as error:
        allocated(changed(silence))
    assert error.value.where == UNIT


def test_noise_below_zero_is_kept_raw_and_noted() -> None:
    def dip(name: str, meta: dict[str, Any]) -> None:
        if name.endswith("int8-row"):
            meta["score"] = -1e-7

    meta = allocated(changed(dip), {"bits_per_weight": 16})
    assert set(meta["plan"].values()) == {"int8-row"}
    assert meta["predicted_kl"]["plan"] == pytest.approx(-8e-7)
    assert meta["certificate"]["objective"] == 0 == meta["certificate"]["gap"]
    assert "negative scores" in meta["certificate"]["notes"][0]


def test_tables_that_do_not_belong_together() -> None:
    inputs = step_inputs()
    fewer = Output(children={k: v for k, v in inputs["scores"].children.items() if k != f"{UNIT}/int8-row"})
    with pytest.raises(InputError, match="not of the same units"):
        allocated(inputs | {"scores": fewer})
    with pytest.raises(InputError, match="the model has no such unit"):
        allocated(inputs | {"model": model(blocks=1)})

    def other_shape(name: str, meta: dict[str, Any]) -> None:
        meta["members"] = {m: v | {"shape": [1, 2]} for m, v in meta["members"].items()}

    with pytest.raises(InputError, match="other linears"):
        allocated(changed(other_shape, "candidates"))

    def other_documents(name: str, meta: dict[str, Any]) -> None:
        if name == f"{UNIT}/int8-row":
            meta["weights"] = meta["weights"][:-1]

    with pytest.raises(InputError, match="different documents"):
        allocated(changed(other_documents))


def test_a_unit_may_lack_a_candidate() -> None:
    inputs = step_inputs()
    for port in ("scores", "candidates"):
        kept = {k: v for k, v in inputs[port].children.items() if k != f"{UNIT}/int3-g64"}
        inputs[port] = Output(children=kept)
    meta = allocated(inputs)
    assert meta["plan"][UNIT] != "int3-g64"
    assert meta["uniform_format"] != "int3-g64" or meta["uniform"][UNIT] != "int3-g64"


def test_an_infeasible_budget_names_the_range() -> None:
    with pytest.raises(InputError, match="no plan meets"):
        allocated(budget={"bits_per_weight": 2.0})


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


def test_every_field_of_the_spec_changes_the_result() -> None:
    """bootstrap and seed change the evidence, the others the plan; `replace` keeps the rest."""
    base = canonical_json(allocated())
    others = [
        allocated(bootstrap=21),
        allocated(seed=1),
        allocated(budget={"bits_per_weight": 3.6}),
        allocated(allocator={"kind": "greedy"}),
        allocated(pins=[{"units": UNIT, "formats": ["int8-row"]}]),
    ]
    assert all(canonical_json(other) != base for other in others)


def test_a_candidate_under_another_name_is_refused() -> None:
    """As when a unit is listed twice: the second entry says it is the first."""

    def twice(name: str, meta: dict[str, Any]) -> None:
        if name == "layers.1.mlp.down/int3-g32":
            meta["unit"] = UNIT

    with pytest.raises(InputError, match="which is there as well"):
        allocated(changed(twice, "candidates"))


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
