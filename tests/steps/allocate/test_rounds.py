"""What closes the loop: neighbours on the hull, whether scores add up, and the choice between two plans."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from allocation import problem, step_inputs
from hypothesis import given
from hypothesis import strategies as st

from schemas.allocate import Additivity, Allocate, Choose, Pin
from schemas.errors import InputError
from steps.allocate import additivity, choose
from steps.allocate import run as allocate
from steps.allocate.neighbours import hull, neighbours
from steps.step import Env, Output

POINTS = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 30)), min_size=1, max_size=8)


@given(POINTS)
def test_the_hull_is_what_some_price_chooses(points: list[tuple[int, int]]) -> None:
    """A corner is the only best point at some price per byte; any other point is beaten or equalled at every price."""
    found = [(x, y) for x, y, _ in hull([(float(x), float(y), i) for i, (x, y) in enumerate(points)])]
    assert found == sorted(set(found)) and set(found) <= set(points)
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(found)]
    assert slopes == sorted(slopes) and all(s < 0 for s in slopes)
    prices = [0.0, *(-s for s in slopes), *(-(a + b) / 2 for a, b in pairwise(slopes)), 100.0]
    for price in prices:
        best = min(y + price * x for x, y in points)
        assert min(y + price * x for x, y in found) == pytest.approx(best)


def test_neighbours_are_the_next_corners_and_respect_pins() -> None:
    given_ = problem(
        [[10, 20, 30, 40], [10, 20, 30, 40], [10, None, 30, 40]],
        [[9.0, 4.0, 3.9, 0.0], [9.0, 4.0, 1.0, 0.0], [9.0, None, 1.0, 0.0]],
    )
    plan = given_.choice_of({"u00000": "f1", "u00001": "f3", "u00002": "f0"})
    # Unit 0's f2 is above the line from f1 to f3; unit 2 may not have f1; f3 and f0 have no further neighbour.
    assert neighbours(given_, plan) == {"u00000": ("f0", "f1", "f3"), "u00001": ("f2", "f3"), "u00002": ("f0", "f2")}


def scores(*documents: list[float], weights: tuple[int, ...] = (1, 1, 1, 1)) -> Output:
    children = {
        f"u{i}/int2-g32": Output(meta={"score": 0.0, "documents": values, "weights": list(weights)})
        for i, values in enumerate(documents)
    }
    return Output(children=children)


def evaluation(*kl: float, weights: tuple[int, ...] = (1, 1, 1, 1)) -> Output:
    rows = [{"tokens": t, "kl": k, "nll": 1.0, "top1": 1.0} for t, k in zip(weights, kl, strict=True)]
    return Output(meta={"documents": rows})


def compared(*kl: float, weights: tuple[int, ...] = (1, 1, 1, 1)) -> Any:
    inputs = {
        "plan": Output(meta={"plan": {"u0": "int2-g32", "u1": "int2-g32"}}),
        "scores": scores([0.1, 0.2, 0.3, 0.4], [0.3, 0.2, 0.1, 0.1], weights=weights),
        "evaluation": evaluation(*kl, weights=weights),
    }
    return additivity.run(Additivity(step="additivity"), inputs, Env())["additivity"].meta


def test_scores_that_add_up_do_so_exactly() -> None:
    found = compared(0.4, 0.4, 0.4, 0.5, weights=(5, 1, 2, 3))
    assert found["ratio"] == {"value": pytest.approx(1), "low": pytest.approx(1), "high": pytest.approx(1)}
    assert found["predicted"] == pytest.approx(found["measured"]) and found["holds"] and found["notes"] == []


@pytest.mark.parametrize(("factor", "holds"), [(1.02, True), (1.6, False), (0.5, False)])
def test_the_threshold_is_what_the_measurement_is_unsure_of(factor: float, holds: bool) -> None:
    found = compared(*(factor * kl for kl in (0.4, 0.4, 0.4, 0.5)))
    assert found["ratio"]["value"] == pytest.approx(factor) and found["holds"] is holds
    measured = found["measured"]
    half = (measured["high"] - measured["low"]) / 2
    assert 0.02 < found["tolerance"] < 0.2 and found["tolerance"] == pytest.approx(half / measured["value"])
    assert bool(found["notes"]) is not holds


def test_scores_without_documents_are_not_compared() -> None:
    inputs = {"plan": Output(meta={"plan": {"u0": "int2-g32"}}), "scores": scores([], weights=())}
    found = additivity.run(Additivity(step="additivity"), inputs | {"evaluation": evaluation(1, 1, 1, 1)}, Env())
    assert set(found["additivity"].meta) == {"notes"}


def test_scores_of_other_tokens_are_refused() -> None:
    inputs = {"plan": Output(meta={"plan": {"u0": "int2-g32"}}), "scores": scores([1.0, 2.0, 3.0, 4.0])}
    with pytest.raises(InputError, match="different tokens"):
        additivity.run(
            Additivity(step="additivity"), inputs | {"evaluation": evaluation(1, 1, 1, 1, weights=(1, 1, 1, 2))}, Env()
        )


def plan(name: str) -> Output:
    return Output(
        meta={
            "plan": {"a": name, "b": name},
            "uniform": {"a": f"uniform {name}"},
            "greedy": {"a": f"greedy {name}"},
            "uniform_format": f"format {name}",
            "bytes": {"plan": len(name), "uniform": 10 + len(name), "greedy": 20 + len(name)},
            "predicted_kl": {"plan": 0.1 * len(name), "uniform": len(name), "greedy": 0.2 * len(name)},
            "certificate": {"baselines": f"baselines {name}", "objective": name},
            "rows": name,
        }
    )


def chosen(kl: tuple[float, ...], second: str = "second") -> Any:
    inputs = {"first": plan("one"), "second": plan(second)}
    rows = {"first_evaluation": evaluation(0.1, 0.2, 0.3, 0.4), "second_evaluation": evaluation(*kl)}
    return choose.run(Choose(step="choose"), inputs | rows, Env())["plan"].meta


def test_the_plan_that_measures_better_is_kept_with_the_first_ones_baselines() -> None:
    found = chosen((0.05, 0.1, 0.2, 0.3))
    assert found["plan"] == {"a": "second", "b": "second"} and found["rows"] == "second"
    assert (found["uniform"], found["greedy"]) == ({"a": "uniform one"}, {"a": "greedy one"})
    assert found["certificate"] == {"baselines": "baselines one", "objective": "second"}
    assert found["bytes"] == {"plan": 6, "uniform": 13, "greedy": 23}
    assert found["predicted_kl"] == pytest.approx({"plan": 0.6, "uniform": 3, "greedy": 0.6})
    assert [r["kept"] for r in found["rounds"]] == [False, True]
    assert found["rounds"][0]["measured"]["value"] == pytest.approx(0.25)
    assert found["contrast"]["verdict"] == "better" and "2 units moved, better" in found["notes"][0]


def test_the_lower_kl_is_kept_even_where_the_difference_means_nothing() -> None:
    found = chosen((0.1, 0.2, 0.3, 0.3))
    assert found["contrast"]["verdict"] == "no difference" and [r["kept"] for r in found["rounds"]] == [False, True]
    assert found["plan"] == {"a": "second", "b": "second"} and found["notes"][0].endswith("), kept")


def test_a_second_plan_that_measures_worse_is_not_kept() -> None:
    found = chosen((0.1, 0.2, 0.3, 0.5))
    assert found["plan"] == {"a": "one", "b": "one"} and [r["kept"] for r in found["rounds"]] == [True, False]
    assert "no difference" in found["notes"][0] and found["notes"][0].endswith("not kept")


def test_a_second_round_that_changes_nothing_says_so() -> None:
    found = chosen((0.1, 0.2, 0.3, 0.4), second="one")
    assert found["notes"] == ["the second round chose the same plan"] and found["moved"] == 0
    assert math.isclose(found["contrast"]["difference"]["value"], 0)


def around_a_plan(document: float = 0.0) -> dict[str, Output]:
    """Step inputs whose scores are relative to the uniform int3-g64 plan, some of them negative, some not offered."""
    inputs = step_inputs(blocks=1, documents=3)
    offered = {"int2-g32": 0.3, "int3-g64": -0.4, "int4-g64": -0.5}
    children = {}
    for name, child in inputs["scores"].children.items():
        meta = {**child.meta, "score": offered.get(child.meta["format"]), "weights": [1, 1, 1]}
        if meta["score"] is not None:
            meta["documents"] = [meta["score"] - document, meta["score"], meta["score"] + document]
        if meta["format"] == "int3-g64":
            meta["around"] = {"kl": 2.0, "documents": [1.0, 2.0, 3.0]}
        children[name] = Output(meta=meta)
    return inputs | {"scores": Output(children=children)}


def test_negative_scores_around_a_plan_are_no_noise() -> None:
    """Four units, each -0.1 when it moves to int4: the sum is KL itself, whatever the units' constants."""
    spec = Allocate.model_validate({"step": "allocate", "budget": {"bits_per_weight": 8}, "bootstrap": 20})
    meta = allocate.run(spec, around_a_plan(0.01), Env())["plan"].meta
    assert set(meta["plan"].values()) == {"int4-g64"}
    assert meta["predicted_kl"]["plan"] == pytest.approx(2.0 - 4 * 0.1)
    interval = meta["certificate"]["predicted_interval"]
    assert interval["value"] == pytest.approx(1.6) and 0.5 < interval["low"] < 1.6 < interval["high"] < 2.7
    assert meta["certificate"]["notes"] == []
    pinned = spec.model_copy(update={"pins": (Pin.model_validate({"units": "*", "exclude": ["int4-g64"]}),)})
    meta = allocate.run(pinned, around_a_plan(), Env())["plan"].meta
    assert set(meta["plan"].values()) == {"int3-g64"} and meta["predicted_kl"]["plan"] == pytest.approx(2.0)


def test_a_predicted_kl_around_a_plan_counts_the_offset() -> None:
    spec = Allocate.model_validate({"step": "allocate", "budget": {"max_predicted_kl": 1.85}, "bootstrap": 0})
    meta = allocate.run(spec, around_a_plan(), Env())["plan"].meta
    assert sorted(meta["plan"].values()).count("int4-g64") == 2  # the cheapest two of -0.1 each: 2.0 - 0.2 <= 1.85
    assert meta["predicted_kl"]["plan"] == pytest.approx(1.8)


def test_a_unit_that_the_text_never_reached_stays_as_it_was() -> None:
    inputs = around_a_plan()
    children = {
        name: Output(meta={**c.meta, "score": 0.0}) if c.meta["score"] and c.meta["unit"].endswith("down") else c
        for name, c in inputs["scores"].children.items()
    }
    spec = Allocate.model_validate({"step": "allocate", "budget": {"bits_per_weight": 8}, "bootstrap": 0})
    meta = allocate.run(spec, inputs | {"scores": Output(children=children)}, Env())["plan"].meta
    assert meta["plan"]["layers.0.mlp.down"] == "int3-g64"
