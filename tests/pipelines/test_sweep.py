"""A sweep on a tiny model: what is shared, what is refused, what is stored, and what the front says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from builds import places, run_build, write_recipe

from pipelines.assemble import Run, assemble
from pipelines.cli import main
from pipelines.commands.sweep import read_bits, read_metrics
from pipelines.front import best_uniform, of_series, sweep_of, trend
from pipelines.plots import draw_front
from pipelines.show_front import sentences, show_front
from pipelines.sweep import Asked, Comparison, Rung, comparison, rungs
from schemas.errors import InputError
from schemas.report import Report
from schemas.sweep import Sweep

BITS = (2.8, 3.4, 4.2)


def opened(folder: Path, **fields: Any) -> tuple[Asked, list[Rung], Comparison]:
    recipe = write_recipe(folder, distill=None)
    asked = Asked(str(recipe), (), **{"bits": BITS, "over": "linears", "metrics": ("fisher",), "random": 2} | fields)
    steps = rungs(asked, places(folder), "cpu")
    return asked, steps, comparison(asked, steps)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Sweep, list[Report], list[dict[str, int]]]:
    """The folder, the sweep, its reports, and what each of its builds and the comparison computed, by node."""
    folder = tmp_path_factory.mktemp("sweep")
    asked, steps, compared = opened(folder)
    reports, counts = [], []
    for rung in steps:
        built = run_build(rung.build)
        reports.append(assemble(rung.build.runner, built, Run(1.0, "here")))
        counts.append({row.id: row.units_computed for row in built.rows})
    built = run_build(compared.build)
    counts.append({row.id: row.units_computed for row in built.rows})
    return folder, sweep_of(asked, reports, compared, built), reports, counts


def test_nothing_is_quantized_or_scored_for_a_second_budget(done: Any) -> None:
    _, _, _, (first, *others, compared) = done
    assert (first["candidates"], first["scores"]) == (32, 32)
    for later in others:
        assert sum(later[n] for n in ("statistics", "candidates", "scoring_reference", "reference", "scores")) == 0
        assert later["plan"] == later["verdict"] == 1
    assert compared["candidates"] == 0 and compared["scores_fisher"] == 1
    assert sum(count for node, count in compared.items() if node.startswith("evaluation")) == 0


def test_a_uniform_format_that_a_build_has_measured_is_not_measured_again(done: Any) -> None:
    _, _, reports, counts = done
    known = {report.uniform_format for report in reports}
    assert known - {None}
    assert all(counts[-1][f"uniform_{name}_evaluation"] == 0 for name in known if name)


def test_every_plan_is_on_the_front_and_sizes_are_those_of_the_files(done: Any) -> None:
    _, sweep, reports, _ = done
    assert [p.label for p in of_series(sweep, "uniform")] == ["int2-g32", "int3-g32", "int4-g64", "int8-g64"]
    assert {s: len(of_series(sweep, s)) for s in ("mixed", "allocated", "greedy", "fisher", "random")} == {
        "mixed": 3, "allocated": 3, "greedy": 3, "fisher": 3, "random": 6
    }  # fmt: skip
    assert [p.bytes for p in of_series(sweep, "mixed")] == [r.bytes.actual for r in reports]
    for report in reports:
        mine = next(p for p in sweep.points if p.label == report.uniform_format)
        assert report.uniform is not None
        assert (mine.bytes, mine.kl) == (report.uniform.bytes, report.uniform.kl)
    budget = of_series(sweep, "allocated")[2]
    best = best_uniform(sweep, budget.bytes)
    assert best is not None and best.label == "int3-g32" and best.bytes <= budget.bytes


def test_a_file_of_another_size_is_an_error(done: Any) -> None:
    folder, _, reports, _ = done
    asked, _, compared = opened(folder)
    wrong = reports[0].model_copy(update={"bytes": reports[0].bytes.model_copy(update={"actual": 1})})
    with pytest.raises(InputError, match="not of the size that was predicted"):
        sweep_of(asked, [wrong, *reports[1:]], compared, run_build(compared.build))


def test_the_trend_of_exact_powers_is_exact() -> None:
    from reports import example_report, measured

    made = [example_report(predicted_kl=p, allocated=measured(10, 3 * p**0.5)) for p in (0.01, 0.04, 0.09)]
    found = trend(made)
    assert found is not None
    assert (found.slope, found.factor) == (pytest.approx(0.5), pytest.approx(3.0))
    assert found.ratios == (pytest.approx(30), pytest.approx(15), pytest.approx(10))
    assert trend(made[:1]) is None


def test_the_front_is_drawn_the_same_every_time_and_says_what_it_shows(done: Any, tmp_path: Path) -> None:
    _, sweep, reports, _ = done
    first, second = draw_front(sweep, tmp_path / "a"), draw_front(sweep, tmp_path / "b")
    assert [p.name for p in first] == ["front.svg", "front.png"]
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    text = first[0].read_text()
    assert all(word in text for word in ("int3-g32", "2.8", "greedy", "by fisher", "random", "packed weights, MB"))
    with (tmp_path / "table.txt").open("w") as file:
        show_front(sweep, reports, file=file, width=200)
    table = (tmp_path / "table.txt").read_text()
    assert all(word in table for word in ("fisher", "random", "predicted", "int8-g64"))
    assert any("measured KL = " in line for line in sentences(sweep))


@pytest.mark.parametrize("bits", ["", "3,x", "3,3.0", "0,3", "3,40", "nan"])
def test_bad_budgets_are_refused(bits: str) -> None:
    with pytest.raises(InputError, match="--bits"):
        read_bits(bits)


def test_budgets_and_metrics_are_read() -> None:
    assert read_bits("4, 2.35,3") == (2.35, 3.0, 4.0)
    assert read_metrics("fisher, kl_probe") == ("kl_probe", "fisher") and read_metrics("") == ()
    assert "zd" in read_metrics("all")
    with pytest.raises(InputError, match="kl_probe"):
        read_metrics("magic")


def test_one_infeasible_budget_stops_everything_before_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BITSMITH_HOME", str(tmp_path / "state"))
    recipe = write_recipe(tmp_path, distill=None)
    assert main(["sweep", str(recipe), "--bits", "3.5,1.1"]) == 2
    said = capsys.readouterr().err
    assert "1.1 over linears" in said and "at least 2." in said
    assert main(["sweep", str(recipe), "--bits", "3.5", "--set", "budget.max_predicted_kl=0.1"]) == 2
    assert "cannot minimise bytes" in capsys.readouterr().err
    assert not list((tmp_path / "state").rglob("traces/*/*"))


def test_an_explicit_recipe_is_swept_but_has_no_other_metrics(done: Any, tmp_path: Path) -> None:
    folder, *_ = done
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    _, steps, _ = opened(copy)
    explicit = copy / "explicit.yaml"
    explicit.write_text(json.dumps(steps[0].build.recipe.model_dump(mode="json")))
    asked = Asked(str(explicit), (), BITS, "linears", random=1)
    again = rungs(asked, places(copy), "cpu")
    assert sum(r.units_computed for rung in again for r in run_build(rung.build).rows) == 0
    assert {c.series for c in comparison(asked, again).contenders} == {"uniform", "random"}
    with pytest.raises(InputError, match="short form"):
        comparison(Asked(str(explicit), (), BITS, "linears", ("fisher",)), again)
