"""The real llama.cpp on our files. It compiles for a quarter of an hour the first time, so all but one are slow."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from ggufs import TEXTS, model_on_disk, selection
from selections import fmt, modified_transformer

from schemas.errors import InputError
from schemas.pack import Pack
from steps.pack import run as pack
from steps.pack.gguf import FILE
from steps.step import Env, Output
from steps.verify import llama

FAMILIES = [("llama", "bpe"), ("mistral", "sentencepiece"), ("qwen2", "bpe"), ("qwen3", "bpe")]


def test_without_it_the_error_says_how_to_build_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITSMITH_LLAMA", str(tmp_path))
    with pytest.raises(InputError, match=r"(?s)not built.*python -m steps\.verify\.llama"):
        llama.logits(tmp_path / FILE, torch.zeros(1, 4, dtype=torch.int32))


@pytest.fixture(scope="module", autouse=True)
def engine(request: pytest.FixtureRequest) -> None:
    """Builds it once, for the slow tests."""
    if any(item.get_closest_marker("slow") for item in request.session.items if item.path == request.path):
        try:
            llama.python()
        except InputError:
            llama.build()


def packed(folder: Path, family: str, tokenizer: str, formats: Sequence[str]) -> tuple[Output, Output]:
    """A tiny model and its selection, packed in `folder/out`."""
    model = model_on_disk(folder / "source", family, tokenizer)
    chosen = selection(model, [fmt(name) for name in formats])
    (folder / "out").mkdir()
    env = Env(scratch=folder / "out")
    pack.run(Pack(step="pack", format="gguf"), {"model": model, "selection": chosen}, env)
    return model, chosen


@pytest.mark.slow
@pytest.mark.parametrize(("family", "tokenizer"), FAMILIES, ids=[f for f, _ in FAMILIES])
def test_its_logits_are_ours_and_it_cuts_text_as_the_tokenizer_does(
    family: str, tokenizer: str, tmp_path: Path
) -> None:
    """It rounds activations to the type of the matrix: bf16 of embedding and head, 8 bits for what is quantized."""
    from tokenizers import Tokenizer

    ids_NS = torch.randint(3, 290, (3, 24), generator=torch.Generator().manual_seed(0))
    for formats, limit in ((["f16"], 1e-2), (["q4_k", "q6_k", "q8_0", "int4-g64", "q3_k"], 5e-2)):
        folder = tmp_path / formats[0]
        model, chosen = packed(folder, family, tokenizer, formats)
        with torch.no_grad():
            expected = modified_transformer(model, chosen)(ids_NS).logits
        found = llama.logits(folder / "out" / FILE, ids_NS)
        difference = float((found - expected).std() / expected.std())
        assert difference < limit, (formats, difference)
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    texts, out = str(tmp_path / "texts.json"), tmp_path / "ids.json"
    llama.run_worker(folder / "out" / FILE, "--tokenize", texts, str(out))
    theirs = Tokenizer.from_file(str(folder / "source" / "tokenizer.json"))
    assert json.loads(out.read_text()) == [theirs.encode(text, add_special_tokens=False).ids for text in TEXTS]


@pytest.mark.slow
def test_a_cut_file_is_one_clear_error(tmp_path: Path) -> None:
    packed(tmp_path, "llama", "bpe", ["q8_0"])
    path = tmp_path / "out" / FILE
    path.write_bytes(path.read_bytes()[:-4096])
    with pytest.raises(InputError, match=r"llama\.cpp does not run the file"):
        llama.logits(path, torch.ones(1, 4, dtype=torch.int32))
