"""Tasks of lm-eval: what is read, refused and said without the harness itself (test_harness.py runs that)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from models import tiny_value, write_model

from schemas.errors import InputError
from schemas.verify import Loading
from steps.verify import options as shared
from steps.verify.__main__ import parser
from steps.verify.options import check_options
from steps.verify.show import lines
from steps.verify.tasks import check_whole, measure_tasks, read_questions

QUESTIONS = Path(__file__).parents[2] / "support" / "tasks" / "python_words.jsonl"


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("not json", ":2"),
        ("[]", ":2"),
        ('{"question": "q", "choices": ["a", "b"]}', ":2"),
        ('{"question": "q", "choices": ["a"], "answer": 0}', ":2"),
        ('{"question": "q", "choices": ["a", "b"], "answer": 2}', ":2"),
        ('{"question": "q", "choices": ["a", "b"], "answer": true}', ":2"),
    ],
)
def test_a_line_that_is_no_question_is_named(tmp_path: Path, line: str, place: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(QUESTIONS.read_text().splitlines()[0] + "\n" + line + "\n")
    with pytest.raises(InputError, match=rf"(?s)multiple-choice question.*q\.jsonl{place}.*mend this line"):
        read_questions(path)


def test_questions_that_are_absent_or_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_questions(tmp_path / "absent.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match="no questions"):
        read_questions(tmp_path / "empty.jsonl")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--tasks", "a.jsonl"], r"(?s)lm-eval is not installed.*-e '\.\[lm-eval\]'"),
        (["--tasks", "a.jsonl", "--engine", "llama.cpp"], "tasks run in transformers"),
        (["--tasks", "a.jsonl", "--limit", "0"], "a limit is of samples"),
        (["--limit", "5"], "a limit is of samples"),
        (["--length", "0"], "16 or more"),
        (["--windows", "-1"], "1 or more"),
        (["--model", "m"], "takes a model and a text"),
        (["--tasks", "a.jsonl", "--text", "t"], "takes a model and a text"),
    ],
)
def test_options_that_cannot_be_are_refused_first(monkeypatch: pytest.MonkeyPatch, words: list[str], says: str) -> None:
    monkeypatch.setattr(shared, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=says):
        check_options(parser().parse_args(["folder", *words]))


def test_lists_are_cut_at_commas() -> None:
    assert parser().parse_args(["folder", "--tasks", "a.yaml, b.jsonl,"]).tasks == ("a.yaml", "b.jsonl")


def test_results_are_told_with_their_errors() -> None:
    value = {"acc": {"value": 0.5, "stderr": 0.1}, "f1": {"value": 0.25, "stderr": None}}
    sound = {"matrices": {}, "origin": {}, "tensors": 1, "files": 1, "bytes": 1, "format": "f"}
    sound |= {"bpw_linear": 1.0, "bpw_total": 1.0}
    found = {"sound": sound, "tasks": {"t": {"samples": 12, "mixed": value}}}
    assert lines(found)[-2:] == ["t: acc 0.5000 ± 0.1000, over 12 samples", "t: f1 0.2500, over 12 samples"]
    found["tasks"]["t"]["original"] = value
    assert lines(found)[-1] == "t: f1 0.2500, original 0.2500, over 12 samples"


@pytest.mark.parametrize(("load", "weights"), [("blocks", 10), ("auto", 2**30 + 1)])
def test_tasks_want_a_model_that_is_loaded_whole(tmp_path: Path, load: Loading, weights: int) -> None:
    """The number of weights follows from what the manifest says of bytes and of bits per weight."""
    told = {"version": 1, "format": "bitsmith", "weights": [], "formats": {}, "headers": {}, "sha256": {}}
    sizes = {"bytes": {"actual": weights // 2}, "bpw": {"total": 8 * (weights // 2) / weights}}
    (tmp_path / "bitsmith.json").write_text(json.dumps(told | sizes))
    check_whole(tmp_path, "whole")
    says = rf"(?s)whole model in memory.*--load {load}, and {4 * weights:,} bytes.*say --load whole"
    with pytest.raises(InputError, match=says):
        check_whole(tmp_path, load)


def test_a_model_without_a_tokenizer_fails_before_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model(tmp_path / "model", tiny_value())
    (folder / "tokenizer.json").unlink()
    monkeypatch.setattr("steps.verify.tasks.open_tasks", lambda names: {})
    with pytest.raises(InputError, match="tokenizer does not load"):
        measure_tasks(folder, ("any.jsonl",), None, "cpu")
