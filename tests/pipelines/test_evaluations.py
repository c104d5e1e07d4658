"""Domains, positions and samples of a whole build; what each costs when it is added later; what is refused."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from builds import open_build, run_build, write_text
from reports import example_report, interval

from pipelines.assemble import Run, assemble
from pipelines.drive import Built
from pipelines.held_out import check_held_out
from pipelines.show import show_report
from schemas.errors import InputError
from schemas.recipe import ShortRecipe
from schemas.report import DomainRow, Generation, PositionRow, Report
from store.lineage_facts import DOMAIN_METRICS, metrics_of


def texts(folder: Path, **domains: str) -> tuple[str, Any]:
    return "text.domains", {name: str(folder / file) for name, file in domains.items()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Built, Report]:
    """A build whose domain `same` is its evaluation text, window for window."""
    folder = tmp_path_factory.mktemp("evaluations") / "first"
    folder.mkdir()
    asked = (texts(folder, same="evaluate.jsonl"), ("text.domain_windows", 8), ("samples", 2))
    build = open_build(folder, *asked)
    built = run_build(build)
    return folder, built, assemble(build.runner, built, Run(1.0, "here"))


def test_a_domain_of_the_evaluation_text_measures_what_the_verdict_does(made: tuple[Path, Built, Report]) -> None:
    """An exact oracle: the same file, tokens, reference and resamples."""
    report = made[2]
    assert report.uniform is not None
    (row,) = report.domains
    assert (row.name, row.documents, row.kl, row.ppl, row.top1, row.original_ppl, row.uniform) == (
        "same", 8, report.mixed.kl, report.mixed.ppl, report.mixed.top1, report.original.ppl, report.uniform.kl,
    )  # fmt: skip


def test_positions_cover_the_window_and_have_both_models(made: tuple[Path, Built, Report]) -> None:
    rows = made[2].positions
    assert [row.first for row in rows] == [0, 1, 2, 4, 8, 16]
    assert [row.last for row in rows] == [0, 1, 3, 7, 15, 30]
    assert all(row.uniform is not None and row.kl.low <= row.kl.value <= row.kl.high for row in rows)


def test_samples_are_beginnings_of_the_evaluation_text(made: tuple[Path, Built, Report]) -> None:
    folder, _, report = made
    documents = [json.loads(line)["text"] for line in (folder / "evaluate.jsonl").read_text().splitlines()]
    assert len(report.generations) == 2
    for each in report.generations:
        assert any(each.prompt in text for text in documents) and each.original and each.mixed


def test_one_more_domain_computes_its_own_nodes_alone(made: tuple[Path, Built, Report], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made[0], tmp_path / "copy"))
    write_text(folder / "more.jsonl", 4, 9)
    asked = (texts(folder, same="evaluate.jsonl", more="more.jsonl"), ("text.domain_windows", 8), ("samples", 2))
    build = open_build(folder, *asked)
    built = run_build(build)
    more = {"domain_more_tokens", "domain_more_reference", "domain_more_uniform", "domain_more"}
    assert {row.id for row in built.rows if row.units_computed} == more
    report = assemble(build.runner, built, Run(1.0, "here"))
    assert [row.name for row in report.domains] == ["same", "more"] and report.domains[0] == made[2].domains[0]


def test_by_blocks_the_report_says_the_same_but_for_speed_and_samples(
    made: tuple[Path, Built, Report], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(made[0], tmp_path / "copy"))
    asked = (texts(folder, same="evaluate.jsonl"), ("text.domain_windows", 8), ("samples", 2), ("load", "blocks"))
    build = open_build(folder, *asked)
    built = run_build(build)
    assert {row.id for row in built.rows if row.units_computed} == {"verdict", "domain_same", "generations"}
    report, whole = assemble(build.runner, built, Run(1.0, "here")), made[2]
    assert (whole.loaded, report.loaded, report.speed) == ("whole", "blocks", None) and whole.speed is not None
    same = ("mixed", "original", "uniform", "contrasts", "gates", "positions", "domains")
    assert [getattr(report, name) for name in same] == [getattr(whole, name) for name in same]
    assert report.generations == () and any("nothing was generated" in note for note in report.notes)


def test_a_domain_of_text_that_was_learned_from_is_refused(tmp_path: Path) -> None:
    tmp_path.joinpath("build").mkdir()
    folder = tmp_path / "build"
    build = open_build(folder, texts(folder, known="calibrate.jsonl"))
    with pytest.raises(InputError, match=r"(?s)must be held out.*domain_known_text.*12 document\(s\) in both"):
        check_held_out(build.runner)


@pytest.mark.parametrize("name", ["A", "with_underscore", "1st", ""])
def test_a_domain_has_a_plain_name(name: str) -> None:
    fields = {"name": "x", "model": {"source": "m"}, "budget": {"bytes": 1}, "formats": ["int4-g64"]}
    with pytest.raises(ValueError, match="String should match pattern"):
        ShortRecipe.model_validate({**fields, "text": {"domains": {name: "file"}}})


def whole_report() -> Report:
    five = [interval(value) for value in (0.02, 0.03, 8.0, 7.5, 0.9)]
    names = ("kl", "uniform", "ppl", "original_ppl", "top1")
    domain = DomainRow(name="law", documents=3, tokens=400, **dict(zip(names, five, strict=True)))
    position = PositionRow(first=2, last=3, kl=interval(0.04))
    samples = (
        Generation(prompt="a\nb", original="c\x1b[2J", mixed="d"),
        Generation(prompt="e", original="f", mixed="f"),
    )
    return example_report(domains=(domain,), positions=(position,), generations=samples)


def test_the_terminal_shows_them_and_obeys_no_text() -> None:
    out = io.StringIO()
    show_report(whole_report(), file=out, width=100)
    lines = [" ".join(line.split()) for line in out.getvalue().splitlines()]
    for line in ("law 3 400 0.02000 ±0.00200 0.03000 8.000 7.500 0.9000", "after a b", "original c?[2J", "both f"):
        assert line in lines, line
    assert "KL by position in the window: 2-3 0.04000" in lines and "\x1b" not in out.getvalue()


def test_every_domain_is_in_the_metrics_under_its_name() -> None:
    found = metrics_of(whole_report())
    assert {name.replace("NAME", "law") for name in DOMAIN_METRICS} <= found.keys()
    assert (found["kl_domain.law"], found["ppl_original_domain.law"]) == (0.02, 7.5)
