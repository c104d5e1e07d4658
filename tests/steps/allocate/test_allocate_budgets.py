"""Budgets, pins and other limits of the allocate step: what they bind, and what is said when they cannot be met."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from allocation import FORMATS, allocated, exact_file, model, step_inputs

from schemas.errors import InputError
from steps.allocate import plan as plan_module


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
    price = allocated(budget={"bits_per_weight": 3.5})["certificate"]["shadow_price"]["kl_per_byte"]
    assert 0.3 < evidence["shadow_price"]["kl_per_byte"] / price < 3, "the same trade, asked for from the other side"


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
    assert meta["certificate"]["limits"][0]["binds"]
    single = allocated(step_inputs(formats=("int4-g64",)), {"bits_per_weight": 4.5})
    assert single["plan"] == single["uniform"] == single["greedy"]


def test_an_infeasible_budget_names_the_range() -> None:
    with pytest.raises(InputError, match="no plan meets"):
        allocated(budget={"bits_per_weight": 2.0})
