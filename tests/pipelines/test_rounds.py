"""A build of two rounds on a tiny model, and the texts it keeps apart."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from builds import open_build, run_build, write_text

from pipelines.assemble import Run, assemble
from pipelines.drive import Built
from pipelines.held_out import check_held_out
from pipelines.sources import open_source_text
from schemas.calibrate import TextSource
from schemas.errors import InputError
from schemas.report import Report

FIELDS: dict[str, Any] = {"distill": None, "rounds": 2}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Built, Report]:
    folder = tmp_path_factory.mktemp("rounds")
    build = open_build(folder, **FIELDS)
    built = run_build(build)
    return folder, built, assemble(build.runner, built, Run(1.0, "here"))


def test_both_rounds_are_reported_and_the_kept_plan_is_the_packed_one(done: Any) -> None:
    folder, built, report = done
    assert [r.round for r in report.rounds] == [1, 2] and sum(r.kept for r in report.rounds) == 1
    kept = min(report.rounds, key=lambda r: r.measured.value)
    assert kept.kept and kept.predicted_kl == report.predicted_kl
    store = open_build(folder, **FIELDS).runner.store
    plans = {n: store.artifacts.load(built.outputs[n]["plan"]).meta for n in ("first_plan", "second_plan", "plan")}
    names = ("first_plan", "second_plan")
    assert plans["plan"]["plan"] == plans[names[kept.round - 1]]["plan"]
    assert {row.unit: row.format for row in report.allocation} == plans["plan"]["plan"]
    assert report.bytes.predicted == report.bytes.actual and report.uniform_format is not None
    assert report.fit is not None and report.fit.ratio.low <= report.fit.ratio.value <= report.fit.ratio.high


def test_the_second_round_measures_only_neighbours_and_is_not_measured_twice(done: Any) -> None:
    folder, built, _ = done
    store = open_build(folder, **FIELDS).runner.store
    rescored = store.artifacts.load(built.outputs["rescored"]["scores"]).children
    measured = [name for name, child in rescored.items() if child.meta["score"] is not None]
    assert len(rescored) == 32 and 8 <= len(measured) <= 24
    assert sum(row.units_computed for row in run_build(open_build(folder, **FIELDS)).rows) == 0


def test_no_document_is_in_two_of_the_texts(done: Any) -> None:
    folder, built, _ = done
    build = open_build(folder, **FIELDS)
    used: dict[str, set[str]] = {}
    for node in ("calibration", "scoring", "choosing", "evaluation"):
        used[node] = set(build.runner.store.artifacts.load(built.outputs[node]["tokens"]).meta["document_digests"])
        assert used[node]
    assert not used["choosing"] & (used["calibration"] | used["scoring"] | used["evaluation"])
    assert not used["evaluation"] & (used["calibration"] | used["scoring"])
    check_held_out(build.runner)


def test_pairs_offer_every_format_in_the_second_round(done: Any) -> None:
    folder, _, _ = done
    build = open_build(folder, **FIELDS, pairs=True)
    built = run_build(build)
    rescored = build.runner.store.artifacts.load(built.outputs["rescored"]["scores"]).children.values()
    assert all(child.meta["score"] is not None for child in rescored)
    assert any(child.meta.get("estimated") for child in rescored)


def test_a_part_of_a_text_is_decided_by_digests_alone(tmp_path: Path) -> None:
    path = write_text(tmp_path / "text.jsonl", 60, 3)
    parts = {
        part: open_source_text(TextSource.model_validate({"step": "text", "source": str(path), "part": part}), tmp_path)
        for part in ("all", "kept", "held_out")
    }
    kept, held = (list(parts[part].texts) for part in ("kept", "held_out"))
    assert sorted(kept + held) == sorted(parts["all"].texts) and not set(kept) & set(held)
    digests = [sorted(hashlib.sha256(t.encode()).hexdigest() for t in texts) for texts in (held, kept)]
    assert len(held) == 12 and digests[0][-1] < digests[1][0]
    lines = path.read_text().splitlines()
    path.write_text("\n".join(reversed(lines + lines[:7])) + "\n")
    again = open_source_text(TextSource(step="text", source=str(path), part="held_out"), tmp_path)
    assert set(again.texts) == set(held)


def test_a_text_too_short_to_hold_anything_out_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text('{"text": "a document"}\n')
    for part in ("kept", "held_out"):
        with pytest.raises(InputError, match=r"text\.choose"):
            open_source_text(TextSource.model_validate({"step": "text", "source": str(path), "part": part}), tmp_path)


@pytest.mark.parametrize(
    ("choose", "says"),
    [("calibrate.jsonl", "text to choose on must be held out"), ("evaluate.jsonl", "evaluation text must be held out")],
)
def test_choosing_on_a_text_that_has_another_use_is_refused(tmp_path: Path, choose: str, says: str) -> None:
    build = open_build(tmp_path, ("text.choose", str(tmp_path / choose)), **FIELDS)
    with pytest.raises(InputError, match=says):
        check_held_out(build.runner)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"budget": {"max_predicted_kl": 0.1}}, "fewest bytes"),
        ({"rounds": 1, "pairs": True}, "rounds must be 2"),
    ],
)
def test_second_rounds_that_make_no_sense(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        open_build(tmp_path, **(FIELDS | changes))
