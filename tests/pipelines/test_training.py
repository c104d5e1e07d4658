"""What is foretold of a training is what it then finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from builds import open_build, write_text

from pipelines import training
from pipelines.build import Build
from pipelines.training import Supply, memory_needed, text_notes
from schemas.calibrate import Tokenize
from schemas.distill import Distill, Reconstruct
from steps.calibrate import tokenize
from steps.distill.memory import block_bytes, training_bytes
from steps.distill.schedule import held_out_of
from steps.step import Env


def supply_of(build: Build) -> Supply:
    (bound, _), *others = training.trainings(build.runner)
    supply = training._supply(build.runner, bound)
    assert supply is not None and not others
    return supply


def windows_found(build: Build, scratch: Path) -> int:
    """By the step that will read the text."""
    runner = build.runner
    spec = runner.by_id["training"].node.spec
    assert isinstance(spec, Tokenize)
    inputs = {port: runner.source(node) for port, (node, _) in runner.by_id["training"].inputs.items()}
    found: int = tokenize.run(spec, inputs, Env(scratch=scratch))["tokens"].meta["windows"]
    return found


@pytest.mark.parametrize("fields", [{"tokens": 100_000}, {"tokens": 64}, {"tokens": 100_000, "text": "own"}])
def test_windows_are_counted_as_the_step_cuts_them(fields: dict[str, Any], tmp_path: Path) -> None:
    text = str(write_text(tmp_path / "own.jsonl", 30, 7))
    distill = {**fields, **({"text": text} if "text" in fields else {})}
    build = open_build(tmp_path / "build", distill=distill)
    assert supply_of(build).windows == windows_found(build, tmp_path) and not supply_of(build).about


def test_of_a_long_text_a_sample_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = str(write_text(tmp_path / "own.jsonl", 300, 7))
    build = open_build(tmp_path / "build", distill={"tokens": 10_000_000, "text": text})
    monkeypatch.setattr(training, "SAMPLE", 20_000)
    assert supply_of(build).about
    assert supply_of(build).windows == pytest.approx(windows_found(build, tmp_path), rel=0.05)
    assert "about " in next(text_notes(build.runner))


def test_bytes_are_those_that_the_step_asks_for(tmp_path: Path) -> None:
    whole = open_build(tmp_path, distill={"tokens": 128, "batch": 2})
    spec, meta = whole.runner.by_id["distilled"].node.spec, whole.runner.source("model").meta
    assert isinstance(spec, Distill)
    assert memory_needed(whole.runner) == {"distilled": training_bytes(spec, meta, 2 * 32)}
    streamed = open_build(tmp_path, distill={"tokens": 128, "batch": 2, "method": "autoround", "scope": "stream"})
    block = streamed.runner.by_id["refined"].node.spec
    assert isinstance(block, Reconstruct)
    windows = 4 + block.held_out
    assert memory_needed(streamed.runner) == {"refined": block_bytes(block, meta, 0, 2 * 32, windows * 32)}


@pytest.mark.parametrize(("asked", "said"), [(5, "by 5 of "), (5000, "; 5000 were asked for: give more text")])
def test_the_text_of_recoding_is_said_too(asked: int, said: str, tmp_path: Path) -> None:
    build = open_build(tmp_path, distill={"method": "recode", "recode": {"windows": asked}, "held_out": 8})
    (note,) = text_notes(build.runner)
    windows = windows_found(build, tmp_path)
    kept = held_out_of(windows, 8)
    assert note.startswith("recoded: chooses codes by ") and said in note
    assert f"{windows - kept} windows of text beside {kept} held-out ones" in note
