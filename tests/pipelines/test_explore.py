"""The budget explorer's allocator: what it says is what the allocate step does, and what it gives builds from cache."""

import io
import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from allocation import step_inputs
from builds import open_build, places, run_build
from pages import record_tiny

from pipelines.budgets import Costs, answer, described, front, pinned
from pipelines.explore import Explorer, serve
from schemas.allocate import Allocate
from schemas.budget import Budget
from schemas.report import Report
from steps.allocate import run as step
from steps.allocate.run import sizing_of
from steps.allocate.table import read
from steps.step import Env
from store.open import Store


def costs(blocks: int = 2, embedding: str | None = None, **budget: Any) -> Costs:
    inputs = step_inputs(blocks, embedding=embedding)
    spec = Allocate.model_validate({"step": "allocate", "budget": budget or {"bits_per_weight": 4.0}})
    table = read(inputs["scores"], inputs["candidates"], inputs["model"])
    return Costs(spec, table, sizing_of(table, spec, inputs["model"]))


@pytest.mark.parametrize(
    "budget",
    [
        {"bits_per_weight": 3.4},
        {"bits_per_weight": 4.9, "over": "file"},
        {"bytes": 165_000},
        {"max_predicted_kl": 0.05},
    ],
    ids=str,
)
def test_plans_are_those_of_the_allocate_step(budget: dict[str, Any]) -> None:
    given, asked = costs(), Budget.model_validate(budget)
    found = answer(pinned(given, {}), asked)
    spec = given.spec.model_copy(update={"budget": asked})
    meta = step.run(spec, step_inputs(2), Env())["plan"].meta
    assert found["kl"] == pytest.approx(meta["predicted_kl"]["plan"], rel=1e-4)  # the step asks its solver for this gap
    assert found["bytes"] == given.sizing.file(
        dict(zip([u.name for u in given.table.units], found["plan"], strict=True))
    )
    if found["kl"] == meta["predicted_kl"]["plan"]:
        assert found["bytes"] == meta["bytes"]["plan"]
    if meta["uniform_format"] is not None:
        assert found["uniform"]["format"] == meta["uniform_format"]


def test_bits_of_linears_do_not_count_a_quantized_embedding() -> None:
    given = costs(embedding="int8-row")
    found, plain = answer(pinned(given, {}), given.spec.budget), answer(pinned(costs(), {}), given.spec.budget)
    assert found["linear_bytes"] == plain["linear_bytes"] and found["linear_bpw"] == plain["linear_bpw"] <= 4.0
    assert found["plan"][1:] == plain["plan"] and found["bytes"] != plain["bytes"]
    low, high = described(given)["achievable"]["linears"]
    assert (low, high) == tuple(described(costs())["achievable"]["linears"])
    whole = front(pinned(given, {}))
    assert all(low <= point["linear_bpw"] <= high for points in whole.values() for point in points)


def test_pins_hold_and_cost(tmp_path: Path) -> None:
    given = costs()
    free = answer(pinned(given, {}), given.spec.budget)
    unit = given.table.units[0].name
    other = next(f for f in given.table.formats if f != free["plan"][0])
    held = answer(pinned(given, {unit: other}), given.spec.budget)
    assert held["plan"][0] == other and held["kl"] >= free["kl"]


def test_more_bytes_never_predict_more_damage() -> None:
    points = front(pinned(costs(), {}))["mixed"]
    assert len(points) > 5
    assert all(a["bytes"] < b["bytes"] and a["kl"] >= b["kl"] for a, b in pairwise(points))
    assert all(next_["kl"] >= 0 for next_ in answer(pinned(costs(), {}), Budget(bits_per_weight=3.0))["next"])


def test_a_budget_of_224_units_takes_less_than_300_ms() -> None:
    given = pinned(costs(56), {})
    assert len(given.problem.units) == 224
    answer(given, Budget(bits_per_weight=4.0))
    taken = []
    for bits in (3.3, 3.7, 4.1, 4.5, 5.0):
        started = time.process_time()
        answer(given, Budget(bits_per_weight=bits))
        taken.append(time.process_time() - started)
    assert sorted(taken)[2] < 0.3


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    folder = tmp_path_factory.mktemp("recorded")
    return folder, record_tiny(folder)


def conversation(folder: Path, *requests: Any) -> list[dict[str, Any]]:
    lines = [each if isinstance(each, str) else json.dumps({"id": i, **each}) for i, each in enumerate(requests)]
    said = io.StringIO()
    where = places(folder)
    serve(Explorer(Store(where.store), where), io.StringIO("\n".join(lines) + "\n"), said)
    return [json.loads(line) for line in said.getvalue().splitlines()]


def test_the_build_that_was_made_is_what_its_own_budget_gives(recorded: tuple[Path, Report]) -> None:
    folder, report = recorded
    opened, solved = conversation(
        folder, {"op": "open", "build": report.build_digest}, {"op": "solve", "build": report.build_digest[:12]}
    )
    assert [u["name"] for u in opened["ok"]["units"]] == [row.unit for row in report.allocation]
    assert solved["ok"]["plan"] == [row.format for row in report.allocation]
    assert (solved["ok"]["bytes"], solved["ok"]["kl"]) == (report.bytes.actual, pytest.approx(report.predicted_kl))


def test_a_recipe_from_another_budget_quantizes_and_scores_nothing(
    recorded: tuple[Path, Report], tmp_path: Path
) -> None:
    folder, report = recorded
    ask = {"build": report.build_digest, "budget": {"bits_per_weight": 4.4}, "pins": {"layers.1.mlp.down": "int2-g32"}}
    solved, given = conversation(folder, {"op": "solve", **ask}, {"op": "recipe", **ask})
    fields = yaml.safe_load(given["ok"]["yaml"])
    assert fields["formats"] == ["int2-g32", "int3-g32", "int4-g64", "int8-g64"]  # by name, and in the short form
    again = open_build(folder, **fields)
    built = run_build(again)
    done = {row.id for row in built.rows if row.units_computed}
    assert not done & {"calibration", "statistics", "candidates", "scores", "reference", "scoring_reference"}
    plan = again.runner.store.artifacts.load(built.outputs["plan"]["plan"]).meta
    assert [row["format"] for row in plan["rows"]] == solved["ok"]["plan"]
    assert plan["bytes"]["plan"] == solved["ok"]["bytes"]


def test_the_explicit_form_is_given_where_the_short_one_is_not_known(recorded: tuple[Path, Report]) -> None:
    folder, report = recorded
    store = Store(places(folder).store)
    old = {**report.model_dump(mode="json"), "asked": None, "build_digest": "e" * 64}
    store.builds.save("e" * 64, old)
    (given,) = conversation(folder, {"op": "recipe", "build": "e" * 64, "budget": {"bits_per_weight": 3.1}})
    store.builds.remove("e" * 64)
    fields = yaml.safe_load(given["ok"]["yaml"])
    assert fields["nodes"]["plan"]["budget"] == {"bits_per_weight": 3.1}
    fields["nodes"]["plan"]["budget"] = {"bits_per_weight": 3.8}
    (folder / "explicit.yaml").write_text(yaml.safe_dump(fields))
    from pipelines.build import prepare

    explicit = prepare(str(folder / "explicit.yaml"), [], places(folder), "cpu")
    assert explicit.recipe.model_dump(mode="json") == report.recipe_document


def test_faults_are_answers(recorded: tuple[Path, Report]) -> None:
    folder, report = recorded
    build = report.build_digest
    answers = conversation(
        folder,
        "not json",
        {"op": "dance", "build": build},
        {"op": "solve", "build": "0" * 64},
        {"op": "solve", "build": build, "budget": {"bits_per_weight": 0.5}},
        {"op": "solve", "build": build, "budget": {"bits_per_weight": "many"}},
        {"op": "solve", "build": build, "pins": {"layers.9.none": "int2-g32"}},
        {"op": "solve", "build": build},
    )
    what = [each.get("error", {}).get("what") for each in answers]
    assert what[:6] == [
        "not a request",
        "no such operation",
        "No such build",
        "no plan meets the budget",
        "not a budget",
        "a pattern matches no unit",
    ]
    assert "ok" in answers[6] and answers[6]["id"] == 6


def test_units_formats_and_range_are_described() -> None:
    given = costs()
    said = described(given)
    assert len(said["units"]) == len(said["sizes"]) == len(said["scores"]) == len(given.table.units)
    low, high = said["achievable"]["bytes"]
    least = answer(pinned(given, {}), Budget(bytes=low))
    assert least["bytes"] == low < high and said["asked"] == {"bits_per_weight": 4.0}
