"""The step itself, on a cost table of a small model: the plan, its evidence, its baselines."""

from __future__ import annotations

import json
import re
from typing import Any, get_args

import numpy as np
import pytest
from allocation import UNIT, allocated, changed, exact_file, problem, step_inputs

from schemas.allocate import Allocator
from schemas.base import canonical_json
from schemas.format import read_format
from steps.allocate.certificate import non_monotone
from steps.allocate.stability import shares
from steps.pack.sizes import linear_bytes
from steps.step import Output


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


def test_a_limit_says_what_it_counts() -> None:
    """A quantized embedding is among the units, so a limit on their bytes counts it."""
    plain = allocated()["certificate"]["limits"][0]
    meta = allocated(step_inputs(embedding="int8-row"), {"bits_per_weight": 3.5})
    with_embedding = meta["certificate"]["limits"][0]
    assert (plain["name"], with_embedding["name"]) == ("bytes of linears", "bytes of linears and embedding")
    embedding = next(row["bytes"] for row in meta["rows"] if row["unit"] == "embed_tokens")
    assert embedding == linear_bytes("compressed-tensors", read_format("int8-row"), (97, 128))
    assert with_embedding["limit"] == plain["limit"] + embedding


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
    said = re.fullmatch(r"(\d+) (kB|bytes) more buys (.+) KL", low["certificate"]["shadow_price"]["text"])
    assert said is not None
    amount = int(said[1]) * {"kB": 1000, "bytes": 1}[said[2]]
    assert 0.001 < amount / sum(r["bytes"] for r in low["rows"]) <= 0.01
    assert float(said[3]) == pytest.approx(prices[0] * amount, rel=0.06)
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


def test_a_document_counts_by_its_tokens_and_as_often_as_it_is_drawn() -> None:
    found = {tuple(share_D) for share_D in shares(np.array([1.0, 3.0]), 50, 0).tolist()}
    assert found == {(1.0, 0.0), (0.25, 0.75), (0.0, 1.0)}


def test_formats_of_more_bytes_that_score_worse_are_counted_by_unit() -> None:
    sizes = [[10, 20, 30], [10, 20, 30], [30, 20, 10], [10, 10, 20], [10, 10, 20]]
    losses = [[3.0, 2.0, 1.0], [3.0, 1.0, 2.0], [1.0, 2.0, 3.0], [2.0, 3.0, 1.0], [1.0, 3.0, 2.0]]
    assert non_monotone(problem(sizes, losses)) == 2


def test_identical_documents_leave_no_doubt() -> None:
    def same(name: str, meta: dict[str, Any]) -> None:
        meta["documents"] = [meta["score"]] * len(meta["documents"])

    stability = allocated(changed(same))["certificate"]["stability"]
    assert stability["agreement"] == 1.0


def test_a_part_that_binds_binds_in_every_resample() -> None:
    """Without a price for its bytes most of its units would get more of them."""
    first = sum(r["bytes"] for r in allocated(budget={"bits_per_weight": 4.0})["rows"] if "layers.0." in r["unit"])
    budget = {"bits_per_weight": 4.0, "parts": [{"units": "layers.0.*", "bytes": int(first * 0.7)}]}
    evidence = allocated(step_inputs(documents=1), budget=budget, bootstrap=5)["certificate"]
    assert evidence["limits"][1]["binds"] and evidence["stability"]["agreement"] > 0.5


def test_without_documents_there_is_no_stability() -> None:
    def bare(name: str, meta: dict[str, Any]) -> None:
        meta["documents"], meta["weights"] = [], []

    assert allocated(changed(bare))["certificate"]["stability"] is None
    assert allocated(bootstrap=0)["certificate"]["predicted_interval"] is None


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
