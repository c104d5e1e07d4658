"""Token windows: exact ids by a character tokenizer, disjoint slices, even spread, and what is refused."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import tiny_config, write_tokenizer

from schemas.calibrate import Tokenize
from schemas.errors import InputError
from steps.calibrate.tokenize import document_order, document_windows, run, stream_order, stream_windows
from steps.step import Env, Output


@pytest.fixture
def model(tmp_path: Path) -> Output:
    """Config and files of a tiny model with a context of 64 and a character tokenizer: chr(c) is c - 30, end is 0."""
    folder = tmp_path / "model"
    folder.mkdir()
    write_tokenizer(folder, 97)
    return Output(meta={"config": tiny_config()}, files={p.name: p for p in folder.iterdir()})


def documents(tmp_path: Path, texts: list[str]) -> Output:
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps({"name": f"n{i}", "text": t}) + "\n" for i, t in enumerate(texts)))
    digests = [hashlib.sha256(t.encode()).hexdigest() for t in texts]
    return Output(meta={"names": [f"n{i}" for i in range(len(texts))], "digests": digests, "notes": []},
                  files={"documents.jsonl": path})  # fmt: skip


def tokens(spec: dict[str, Any], model: Output, text: Output, tmp_path: Path) -> Output:
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    asked = Tokenize.model_validate({"step": "tokenize", "layout": "document", "length": 16, **spec})
    return run(asked, {"model": model, "text": text}, Env(scratch=scratch))["tokens"]


def rows(value: Output) -> list[list[int]]:
    lengths = value.tensors["lengths_N"].tolist()
    return [ids[:n] for ids, n in zip(value.tensors["ids_NS"].tolist(), lengths, strict=True)]


def spelled(text: str) -> list[int]:
    return [ord(c) - 30 for c in text]


TEXTS = ["abcdefghijklmnopqrstuvwxyz" * 2, "0123456789", "ABCDEFGHIJKLMNOPQRSTUVWXYZ" * 3, "x"]


def test_document_windows_are_the_documents_cut(model: Output, tmp_path: Path) -> None:
    text = documents(tmp_path, TEXTS)
    value = tokens({"windows": 100}, model, text, tmp_path)
    expected = {
        tuple(spelled(t[i : i + 16])): d
        for d, t in enumerate(TEXTS)
        for i in range(0, len(t), 16)
        if len(t[i : i + 16]) > 1
    }
    assert Counter(map(tuple, rows(value))) == Counter(expected.keys())
    assert value.tensors["document_N"].tolist() == [expected[tuple(r)] for r in rows(value)]
    assert value.meta["document_digests"] == text.meta["digests"][:3]  # "x" predicts nothing
    assert value.meta["documents"] == 3 and value.meta["windows"] == len(expected)
    assert value.meta["tokens"] == sum(map(len, expected)) and value.meta["length"] == 16
    assert value.meta["notes"] == ["100 windows asked, 10 available"]
    for name in ("ids_NS", "lengths_N", "document_N"):
        assert value.tensors[name].dtype == torch.int32


def test_padding_is_zero_and_no_wider_than_the_longest(model: Output, tmp_path: Path) -> None:
    value = tokens({"windows": 8, "length": 64}, model, documents(tmp_path, ["abc", "abcdef"]), tmp_path)
    ids_NS, lengths_N = value.tensors["ids_NS"], value.tensors["lengths_N"]
    assert ids_NS.shape == (2, 6) and sorted(lengths_N.tolist()) == [3, 6]
    assert not ids_NS[torch.arange(6)[None] >= lengths_N[:, None]].any()
    assert value.meta["length_asked"] == 64


def test_stream_joins_documents_by_the_end_token(model: Output, tmp_path: Path) -> None:
    text = documents(tmp_path, TEXTS)
    value = tokens({"layout": "stream", "windows": 100}, model, text, tmp_path)
    stream = [0]
    for t in TEXTS:
        stream += [*spelled(t), 0]
    stream = stream[1:-1]
    expected = [stream[i : i + 16] for i in range(0, len(stream) - 15, 16)]
    assert sorted(rows(value)) == sorted(expected) and rows(value) != expected
    assert value.tensors["document_N"].tolist() == list(range(len(expected)))
    assert value.meta["documents"] == 4 and value.meta["document_digests"] == text.meta["digests"]


def test_stream_names_only_the_documents_it_took_from(model: Output, tmp_path: Path) -> None:
    text = documents(tmp_path, [c * 40 for c in "abcdefgh"])
    value = tokens({"layout": "stream", "windows": 1, "length": 20}, model, text, tmp_path)
    seen = {chr(i + 30) for i in rows(value)[0]} & set("abcdefgh")
    assert value.meta["document_digests"] == [text.meta["digests"]["abcdefgh".index(c)] for c in sorted(seen)]


def test_stream_without_an_end_token_says_so(model: Output, tmp_path: Path) -> None:
    for end, first in (([7, 8], [spelled("a")[0], 7]), (None, spelled("ab")), (99, spelled("ab"))):
        changed = Output(meta={"config": tiny_config(eos_token_id=end)}, files=model.files)
        text = documents(tmp_path, ["a", "b" * 30])
        value = tokens({"layout": "stream", "windows": 1, "length": 30}, changed, text, tmp_path)
        assert rows(value)[0][:2] == first
        assert [n for n in value.meta["notes"] if "without an end token" in n] == (
            [] if end == [7, 8] else [f"documents joined without an end token: the config's eos_token_id is {end}"]
        )


def test_saved_truncation_and_padding_are_switched_off(model: Output, tmp_path: Path) -> None:
    path = model.files["tokenizer.json"]
    saved = json.loads(path.read_text())
    saved["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    saved["padding"] = {"strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                        "pad_type_id": 0, "pad_token": "<|end|>"}  # fmt: skip
    path.write_text(json.dumps(saved))
    value = tokens({"windows": 8}, model, documents(tmp_path, ["abcdefg"]), tmp_path)
    assert rows(value) == [spelled("abcdefg")]


def test_document_layout_keeps_the_tokenizers_own_start_token(model: Output, tmp_path: Path) -> None:
    path = model.files["tokenizer.json"]
    saved = json.loads(path.read_text())
    saved["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|unk|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|unk|>": {"id": "<|unk|>", "ids": [1], "tokens": ["<|unk|>"]}},
    }
    path.write_text(json.dumps(saved))
    text = documents(tmp_path, ["a" * 20])
    assert rows(tokens({"windows": 1}, model, text, tmp_path))[0] in ([1, *spelled("a" * 15)], spelled("a" * 5))
    assert rows(tokens({"windows": 1, "layout": "stream"}, model, text, tmp_path)) == [spelled("a" * 16)]


@pytest.mark.parametrize("layout", ["stream", "document"])
def test_slices_are_disjoint_and_together_are_everything(layout: str, model: Output, tmp_path: Path) -> None:
    generator = random.Random(0)
    texts = ["".join(generator.choices("abcdefgh", k=generator.randrange(2, 90))) for _ in range(30)]
    text = documents(tmp_path, texts)
    whole = rows(tokens({"layout": layout, "windows": 999}, model, text, tmp_path))
    parts, skip = [], 0
    for size in (1, 7, 20, 999):
        parts += rows(tokens({"layout": layout, "windows": size, "skip": skip}, model, text, tmp_path))
        skip += size
    assert parts == whole
    assert len({tuple(r) for r in whole}) > len(whole) // 2


@pytest.mark.parametrize("layout", ["stream", "document"])
def test_same_spec_same_bytes_another_seed_another_order(layout: str, model: Output, tmp_path: Path) -> None:
    text = documents(tmp_path, TEXTS)
    state = (random.getstate(), torch.random.get_rng_state())
    first, again, other = (
        rows(tokens({"layout": layout, "windows": 999, "seed": s}, model, text, tmp_path)) for s in (0, 0, 1)
    )
    assert first == again != other and sorted(first) == sorted(other)
    assert random.getstate() == state[0] and torch.equal(torch.random.get_rng_state(), state[1])


def test_order_is_pinned() -> None:
    """Golden: a change of the order would silently move text between slices."""
    assert stream_order(8, 0) == [7, 4, 3, 2, 6, 0, 5, 1]
    assert document_order([0, 0, 0, 1, 2, 2], 0) == [4, 1, 3, 5, 2, 0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 6), max_size=40), st.integers(0, 9))
def test_every_slice_spreads_over_documents(document_of: list[int], seed: int) -> None:
    document_of = sorted(document_of)
    order = document_order(document_of, seed)
    assert sorted(order) == list(range(len(document_of)))
    total = Counter(document_of)
    for stop in range(len(order) + 1):
        taken = Counter(document_of[w] for w in order[:stop])
        unfinished = [taken[d] for d in total if taken[d] < total[d]]
        assert not unfinished or max(taken.values(), default=0) <= min(unfinished) + 1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.integers(2, 9), st.booleans())
def test_windows_name_exactly_their_documents(sizes: list[int], length: int, end: bool) -> None:
    texts = [[100 + d] * n for d, n in enumerate(sizes)]
    for window in stream_windows(texts, [0] if end else [], length):
        assert len(window.ids) == length
        assert {i - 100 for i in window.ids if i} <= set(window.documents)
        assert all(0 <= d < len(sizes) for d in window.documents)
    for window in document_windows(texts, length):
        assert 2 <= len(window.ids) <= length and set(window.ids) == {100 + window.documents.start}


def test_length_beyond_the_context_is_capped_with_a_note(model: Output, tmp_path: Path) -> None:
    value = tokens({"windows": 1, "length": 4096}, model, documents(tmp_path, ["a" * 300]), tmp_path)
    assert value.meta["length_asked"] == 4096 and value.meta["length"] == 64
    assert value.meta["notes"] == ["windows of 4096 tokens asked, capped at the model's context of 64"]


@pytest.mark.parametrize(
    ("spec", "texts", "message", "got"),
    [
        ({}, ["a", "b"], "too short for one window", "2 documents, 2 tokens, the longest of 1"),
        ({"layout": "stream"}, ["abc", "d"], "too short for one window", "2 documents, 4 tokens, the longest of 3"),
        ({"skip": 2, "windows": 3}, ["abc", "abc"], "no windows are left", "2 windows of 16 tokens, of which 2"),
    ],
)
def test_too_little_text(
    spec: dict[str, Any], texts: list[str], message: str, got: str, model: Output, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message) as error:
        tokens(spec, model, documents(tmp_path, texts), tmp_path)
    assert got in error.value.got and error.value.wanted and error.value.fix


def test_fewer_windows_than_asked_is_a_note(model: Output, tmp_path: Path) -> None:
    value = tokens({"skip": 1, "windows": 3}, model, documents(tmp_path, ["abc", "abd"]), tmp_path)
    assert value.meta["notes"] == ["3 windows asked, 1 available after 1 skipped"]


def test_tokenizer_of_another_model_is_refused(model: Output, tmp_path: Path) -> None:
    small = Output(meta={"config": tiny_config(vocab_size=50)}, files=model.files)
    with pytest.raises(InputError, match="does not belong to this model") as error:
        tokens({}, small, documents(tmp_path, ["abc"]), tmp_path)
    assert error.value.got == f"token id {ord('c') - 30}"


def test_missing_and_broken_tokenizers(model: Output, tmp_path: Path) -> None:
    text = documents(tmp_path, ["abc"])
    config = model.files["tokenizer_config.json"]
    with pytest.raises(InputError, match="the model has no tokenizer"):
        tokens({}, Output(meta=model.meta, files={"tokenizer_config.json": config}), text, tmp_path)
    model.files["tokenizer.json"].write_text('{"model": {"type": "nonsense"}}')
    with pytest.raises(InputError, match="tokenizer does not load"):
        tokens({}, model, text, tmp_path)


def test_vocabulary_files_go_through_transformers(model: Output, tmp_path: Path) -> None:
    folder = tmp_path / "slow"
    folder.mkdir()
    vocab = {"<|end|>": 0, **{c: i + 1 for i, c in enumerate("abcd")}, "ab": 5}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    special = {t: "<|end|>" for t in ("eos_token", "bos_token", "unk_token", "pad_token")}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer", **special}))
    (folder / "config.json").write_text(json.dumps(tiny_config()))
    slow = Output(meta=model.meta, files={p.name: p for p in folder.iterdir()})
    assert rows(tokens({}, slow, documents(tmp_path, ["abcd"]), tmp_path)) == [[5, 3, 4]]


def test_importing_the_step_is_cheap() -> None:
    code = (
        "import sys, steps.calibrate.tokenize\n"
        "heavy = {'torch', 'transformers', 'tokenizers', 'numpy', 'fsspec'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
