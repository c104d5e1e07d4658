"""Scores around a plan: sums of them are KL itself, for the plan and for every plan one step from it."""

from __future__ import annotations

from typing import Any

import pytest
from models import tiny_tokens, tiny_value
from selections import candidates_of, item, selection_of, units_of
from selections import fmt as form

from schemas.allocate import Allocate
from schemas.artifact import item_name
from schemas.calibrate import Reference
from schemas.errors import InputError
from schemas.sensitivity import KLProbe, Rescore
from schemas.verify import Evaluate
from steps.allocate import run as allocate
from steps.allocate.table import read
from steps.calibrate import reference
from steps.sensitivity import kl_probe, rescore
from steps.step import Env, Output
from steps.verify import evaluate
from steps.verify.metrics import weighted_mean

FORMATS = ("int2-g32", "int3-g32", "int4-g32", "int8-g32")
SPEC = Rescore(step="rescore", batch=4)


def kl_of(inputs: dict[str, Output], selection: Output) -> float:
    spec = Evaluate(step="evaluate", batch=3)
    found = evaluate.run(spec, inputs | {"selection": selection}, Env())["evaluation"].meta["documents"]
    return weighted_mean([d["kl"] for d in found], [d["tokens"] for d in found])


@pytest.fixture(scope="module")
def around() -> dict[str, Any]:
    """A two-block model, first scores, a plan, and the scores around it."""
    model, tokens, env = tiny_value(num_hidden_layers=2), tiny_tokens(6, 16), Env()
    read_by = {"model": model, "tokens": tokens}
    inputs = read_by | reference.run(Reference(step="reference", batch=3), read_by, env)
    candidates = candidates_of(model, *FORMATS)
    probe = KLProbe(step="kl_probe", batch=4)
    first = {
        name: kl_probe.run(probe, inputs | {"candidates": child}, env)["scores"]
        for name, child in candidates.children.items()
    }
    spec = Allocate.model_validate({"step": "allocate", "budget": {"bits_per_weight": 4.2}, "bootstrap": 0})
    given = {"model": model, "candidates": candidates, "scores": Output(children=first)}
    plan = allocate.run(spec, given, env)["plan"]
    inputs |= {"plan": plan, "selection": selection_of(model, plan.meta["plan"])}
    second = {
        name: rescore.run(SPEC, inputs | {"candidates": child, "scores": first[name]}, env)["scores"]
        for name, child in candidates.children.items()
    }
    return {"inputs": inputs, "candidates": candidates, "first": first, "second": second, "spec": spec, "plan": plan}


def predicted(around: dict[str, Any], plan: dict[str, str]) -> float:
    model = around["inputs"]["model"]
    table = read(Output(children=around["second"]), around["candidates"], model)
    names = list(table.formats)
    scores = [float(table.score_UC[i, names.index(plan[u.name])]) for i, u in enumerate(table.units)]
    return table.offset + sum(scores)


def test_the_plan_itself_is_predicted_exactly(around: dict[str, Any]) -> None:
    plan = dict(around["plan"].meta["plan"])
    measured = kl_of(around["inputs"], around["inputs"]["selection"])
    assert predicted(around, plan) == pytest.approx(measured, rel=1e-5)
    assert around["plan"].meta["predicted_kl"]["plan"] != pytest.approx(
        measured, rel=1e-2
    )  # first scores do not add up


def test_every_plan_one_step_away_is_predicted_exactly(around: dict[str, Any]) -> None:
    model, plan = around["inputs"]["model"], dict(around["plan"].meta["plan"])
    moves = [(u, f) for u in plan for f in around["plan"].meta["neighbours"][u] if f != plan[u]]
    assert len(moves) >= 8
    for unit, name in moves[::3]:
        moved = plan | {unit: name}
        assert predicted(around, moved) == pytest.approx(kl_of(around["inputs"], selection_of(model, moved)), rel=1e-4)


def test_only_neighbours_are_offered(around: dict[str, Any]) -> None:
    for name, found in around["second"].items():
        unit, fmt = name.split("/")
        offered = fmt in around["plan"].meta["neighbours"][unit]
        assert (found.meta["score"] is not None) == offered
        assert ("around" in found.meta) == (around["plan"].meta["plan"][unit] == fmt)


def test_the_second_plan_is_predicted_no_worse_than_the_first(around: dict[str, Any]) -> None:
    inputs = {"model": around["inputs"]["model"], "candidates": around["candidates"]}
    found = allocate.run(around["spec"], inputs | {"scores": Output(children=around["second"])}, Env())["plan"].meta
    measured = kl_of(around["inputs"], around["inputs"]["selection"])
    assert found["predicted_kl"]["plan"] <= measured * (1 + 1e-5)
    assert found["bytes"]["plan"] <= around["plan"].meta["bytes"]["plan"] + 8
    assert found["certificate"]["objective"] + read_offset(around) == pytest.approx(found["predicted_kl"]["plan"])


def read_offset(around: dict[str, Any]) -> float:
    return read(Output(children=around["second"]), around["candidates"], around["inputs"]["model"]).offset


def test_documents_add_up_to_the_score(around: dict[str, Any]) -> None:
    for found in around["second"].values():
        if found.meta["score"] is not None:
            mean = weighted_mean(found.meta["documents"], found.meta["weights"])
            assert mean == pytest.approx(found.meta["score"], rel=1e-9)


def test_with_interactions_other_formats_are_estimated(around: dict[str, Any]) -> None:
    """Cosines of 1 make every score the square of a sum: with one other unit, (a + b)^2 - b^2 = a^2 + 2ab."""
    plan = around["plan"].meta
    unit, other = list(plan["plan"])[:2]
    name = next(f for f in FORMATS if f not in plan["neighbours"][unit])
    pairs = [{"first": unit, "second": other, "correlation": 1.0}, {"first": other, "second": "x", "correlation": 0.5}]
    given = around["inputs"] | {
        "candidates": around["candidates"].children[item_name(unit, name)],
        "scores": around["first"][item_name(unit, name)],
        "interactions": Output(meta={"pairs": pairs}),
    }
    found = rescore.run(SPEC, given, Env())["scores"].meta
    own = around["first"][item_name(unit, name)].meta["score"]
    beside = next(row["score"] for row in plan["rows"] if row["unit"] == other)
    assert found["score"] == pytest.approx(own + 2 * (own * beside) ** 0.5) and found["estimated"]
    assert weighted_mean(found["documents"], found["weights"]) == pytest.approx(found["score"])


def test_a_plan_of_another_model_is_refused(around: dict[str, Any]) -> None:
    model = around["inputs"]["model"]
    unit = units_of(model)[0]
    first = around["first"][item_name(unit.name, "int2-g32")]
    given = {"candidates": item(model, unit, form("int2-g32")), "scores": first, "plan": Output(meta={"plan": {}})}
    with pytest.raises(InputError, match="no format for a unit"):
        rescore.run(SPEC, around["inputs"] | given, Env())
