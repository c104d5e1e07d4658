"""What is foretold of a training is what it then finds."""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from builds import CONFIG, open_build, write_recipe, write_text
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from pipelines import supply
from pipelines.build import Build
from pipelines.memory import PROCESS
from pipelines.preflight import check
from pipelines.supply import Supply
from pipelines.training import memory_needed, text_notes
from schemas.calibrate import Tokenize
from schemas.distill import Distill, Reconstruct
from steps.calibrate import tokenize
from steps.calibrate.encode import Encode, encode_all
from steps.distill.memory import block_bytes, training_bytes
from steps.distill.schedule import held_out_of
from steps.step import Env


def supply_of(build: Build) -> Supply:
    found = supply.supply_of(build.runner, "training")
    assert found is not None
    return found


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


def sampled(build: Build, monkeypatch: pytest.MonkeyPatch) -> int:
    """Characters that are encoded to count the text, of more than 20,000."""
    encoded: list[int] = []

    def noted(encode: Encode, texts: Sequence[str], special: bool, vocabulary: int) -> list[array[int]]:
        encoded.append(sum(map(len, texts)))
        return encode_all(encode, texts, special, vocabulary)

    monkeypatch.setattr(supply, "SAMPLE", 20_000)
    monkeypatch.setattr(supply, "encode_all", noted)
    assert supply_of(build).about
    return max(encoded)


def test_of_a_long_text_a_sample_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = str(write_text(tmp_path / "own.jsonl", 300, 7))
    build = open_build(tmp_path / "build", distill={"tokens": 10_000_000, "text": text})
    assert sampled(build, monkeypatch) <= 20_000
    assert supply_of(build).windows == pytest.approx(windows_found(build, tmp_path), rel=0.05)
    assert "about " in next(text_notes(build.runner))


def test_of_one_long_document_a_sample_is_counted_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder's file is one document, whatever its length."""
    lines = write_text(tmp_path / "own.jsonl", 300, 7).read_text().splitlines()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "one.txt").write_text(" ".join(json.loads(line)["text"] for line in lines))
    build = open_build(tmp_path / "build", distill={"tokens": 10_000_000, "text": str(tmp_path / "folder")})
    assert sampled(build, monkeypatch) == pytest.approx(20_000, rel=0.5)
    assert supply_of(build).windows == pytest.approx(windows_found(build, tmp_path), rel=0.05)


@pytest.mark.parametrize("sizes", [range(2, 30), range(2, 300), [33] * 100, [20_000, *[5] * 100]])
def test_windows_by_document_are_estimated_too(
    sizes: Sequence[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every document has a start token, and a last window that is cut short."""
    texts = [{"text": "abcde" * (size // 5) + "x" * (size % 5)} for size in sizes]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    write_recipe(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    tokenizer.post_processor = TemplateProcessing("<|end|> $A", None, [("<|end|>", 0)])
    tokenizer.save(str(tmp_path / "model" / "tokenizer.json"))
    build = open_build(tmp_path, ("text.evaluate", str(tmp_path / "own.jsonl")), ("text.evaluate_windows", 10**9))
    whole = supply.supply_of(build.runner, "evaluation")
    monkeypatch.setattr(supply, "_COUNTED", {})
    monkeypatch.setattr(supply, "SAMPLE", sum(sizes) // 3)
    monkeypatch.setattr(supply, "PIECE", 50)
    estimated = supply.supply_of(build.runner, "evaluation")
    assert whole is not None and estimated is not None and estimated.about and not whole.about
    assert estimated.windows == pytest.approx(whole.windows, rel=0.02)


def test_bytes_are_those_that_the_step_asks_for(tmp_path: Path) -> None:
    whole = open_build(tmp_path, distill={"tokens": 128, "batch": 2})
    spec, meta = whole.runner.by_id["distilled"].node.spec, whole.runner.source("model").meta
    assert isinstance(spec, Distill)
    assert memory_needed(whole.runner) == {"distilled": training_bytes(spec, meta, 2 * 32)}
    streamed = open_build(tmp_path, distill={"tokens": 128, "batch": 2, "method": "autoround", "scope": "stream"})
    block = streamed.runner.by_id["refined"].node.spec
    assert isinstance(block, Reconstruct)
    windows = supply_of(streamed).windows
    assert windows > 4 + block.held_out
    assert memory_needed(streamed.runner) == {"refined": block_bytes(block, meta, 0, 2 * 32, windows * 32)}


def test_hidden_states_wait_where_blocks_are_trained_in_turn(tmp_path: Path) -> None:
    """What enters a block in both models and its target, of every window; on a GPU they wait outside."""
    ((_, by_blocks),) = forecasts(tmp_path / "blocks", method="autoround").items()
    ((_, whole),) = forecasts(tmp_path / "whole", method="autoround", scope={"kind": "whole"}, **LOGITS).items()
    windows = 5 * 6  # of which a fifth is held out
    assert by_blocks - whole == 3 * 4 * windows * 32 * CONFIG["hidden_size"]


LOGITS = {"objective": [{"kind": "logits"}]}


def forecasts(folder: Path, **distill: Any) -> dict[str, int]:
    """Bytes by node, of 128 tokens in windows of 32 and 6 windows held out."""
    return memory_needed(open_build(folder, distill={"tokens": 128, "batch": 2, "held_out": 6, **distill}).runner)


@pytest.mark.parametrize("scope", [{}, {"scope": {"kind": "blocks"}}, {"scope": "stream", "method": "autoround"}])
@pytest.mark.parametrize("asked", [{"held_out": 10**12}, {"tokens": 10**12}, {"batch": 10**6}])
def test_what_is_asked_beyond_the_text_takes_no_more(
    asked: dict[str, Any], scope: dict[str, Any], tmp_path: Path
) -> None:
    """As if all of the text had been asked for, in one batch."""
    most = forecasts(tmp_path, **scope, tokens=32 * 107, batch=107)
    assert all(0 < needed <= most[node] for node, needed in forecasts(tmp_path, **scope, **asked).items())


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"held_out": 10**12}, {}),
        ({"recode": {"windows": 10**9}}, {}),
        ({}, {"score_windows": 10**9}),
        ({}, {"evaluate_windows": 10**9}),
    ],
)
def test_forecasts_go_by_the_text_that_is_there(fields: dict[str, Any], text: dict[str, int], tmp_path: Path) -> None:
    build = open_build(tmp_path, *((f"text.{name}", value) for name, value in text.items()),
                       distill={"tokens": 128, **fields}, load="blocks")  # fmt: skip
    forecast = check(build)
    assert forecast.memory_needed < PROCESS + 50 * 2**20 and forecast.scratch_needed < 50 * 2**20


@pytest.mark.parametrize("method", ["latent", "recode"])
def test_a_short_training_holds_out_as_many_windows_as_were_asked_for(method: str, tmp_path: Path) -> None:
    """The text is there; that next to nothing is trained on must not leave fewer to judge by."""
    distill = {"method": method, "held_out": 12} | (
        {"tokens": 64, "recode": False} if method == "latent" else {"recode": {"windows": 2}}
    )
    for note in text_notes(open_build(tmp_path, distill=distill).runner):
        assert "beside 12 held-out" in note and "were asked for" not in note


@pytest.mark.parametrize(("asked", "limited"), [(6, False), (10**12, True)])
@pytest.mark.parametrize("method", ["latent", "recode"])
def test_windows_held_out_are_those_that_were_asked_for_or_it_is_said(
    method: str, asked: int, limited: bool, tmp_path: Path
) -> None:
    build = open_build(tmp_path, distill={"method": method, "held_out": asked})
    for note in text_notes(build.runner):
        assert ("(1,000,000,000,000 were asked for, which takes more text)" in note) == limited
        assert ("beside 6 held-out" in note) == (not limited)


@pytest.mark.parametrize(("asked", "said"), [(5, "by 5 of "), (5000, "; 5000 were asked for: give more text")])
def test_the_text_of_recoding_is_said_too(asked: int, said: str, tmp_path: Path) -> None:
    build = open_build(tmp_path, distill={"method": "recode", "recode": {"windows": asked}, "held_out": 8})
    (note,) = text_notes(build.runner)
    windows = windows_found(build, tmp_path)
    kept = held_out_of(windows, 8)
    assert note.startswith("recoded: chooses codes by ") and said in note
    assert f"{windows - kept} windows of text beside {kept} held-out ones" in note
