"""Every sensitivity metric as a recipe names it, and formats with several widths in one matrix, from end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from builds import open_build, run_build

from pipelines.expand import expand
from pipelines.graph import bind
from schemas.recipe import ShortRecipe
from schemas.sensitivity import METRICS, PREDICT_KL, MetricName

PLAIN: dict[str, Any] = {
    "name": "a",
    "model": {"source": "none"},
    "budget": {"bits_per_weight": 3},
    "formats": ["int3-g64"],
}
NO_TEXT = {"weight_error", "zd", "output_error", "size_normalised"}


def test_the_names_are_those_of_the_specs() -> None:
    assert set(METRICS) == set(get_args(MetricName))


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_expands_to_a_graph_that_binds(name: MetricName) -> None:
    recipe = expand(ShortRecipe.model_validate({**PLAIN, "sensitivity": name}))
    assert {b.id for b in bind(recipe)} == set(recipe.nodes)
    assert recipe.nodes["scores"].spec.step == name
    assert ("scoring" in recipe.nodes) == ("tokens" in recipe.nodes["scores"].inputs) == (name not in NO_TEXT)
    assert ("scoring_reference" in recipe.nodes) == (name in PREDICT_KL)


def test_free_scores_and_several_widths_in_a_matrix_make_a_file_of_the_size_foretold(tmp_path: Path) -> None:
    pins = [
        {"units": "*.mlp.*", "formats": ["int2+4-g32@3"]},
        {"units": "*.o", "formats": ["baq3-g64"]},
    ]
    build = open_build(
        tmp_path,
        formats=["int2-g32", "int4-g64", "int2+4-g32@3", "baq3-g64"],
        sensitivity="fisher_rows",
        pack="bitsmith",
        pins=pins,
        distill=None,
    )
    outputs = run_build(build).outputs
    load = build.runner.store.artifacts.load
    plan = load(outputs["plan"]["plan"]).meta
    chosen = set(plan["plan"].values())
    assert {"int2+4-g32@3", "baq3-g64"} <= chosen
    packed = load(outputs["packed"]["packed"]).meta
    assert packed["bytes"]["predicted"] == packed["bytes"]["actual"] == plan["bytes"]["plan"]
    verdict = load(outputs["verdict"]["verdict"]).meta
    gates = {gate["name"]: gate["passed"] for gate in verdict["gates"]}
    assert gates["weights_match"] and gates["size_as_predicted"]


@pytest.mark.slow
@pytest.mark.parametrize("name", METRICS)
def test_every_metric_builds(tmp_path: Path, name: MetricName) -> None:
    build = open_build(tmp_path, sensitivity=name, distill=None)
    outputs = run_build(build).outputs
    plan = build.runner.store.artifacts.load(outputs["plan"]["plan"]).meta
    assert len(plan["plan"]) == 8 and plan["certificate"]["gap"] <= 1e-4
