"""Generation against plain forward passes, the choice of prompts, and where a text ends."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models import FAMILIES, tiny_tokens, tiny_value, write_model

from schemas.errors import InputError
from steps.step import Output
from steps.verify.folder_model import FolderModel
from steps.verify.generate import end_tokens, greedy, open_tokenizer, prompts
from steps.verify.load_packed import in_float32
from steps.verify.loaders import load_original


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_original_writes_what_transformers_predicts(tmp_path: Path, family: str) -> None:
    """An exact oracle: its own loader, and a forward pass over the whole text for every token."""
    from transformers import AutoModelForCausalLM

    folder = write_model(tmp_path / "model", tiny_value(family))
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt_NS = tiny_tokens(2, 8, ragged=False).tensors["ids_NS"].long()
    wanted_NS = prompt_NS
    for _ in range(6):
        next_N1 = theirs(input_ids=wanted_NS, use_cache=False).logits[:, -1:].argmax(-1)
        wanted_NS = torch.cat([wanted_NS, next_N1], dim=1)
    found = greedy(in_float32(load_original(FolderModel(folder))), prompt_NS, 6, frozenset())
    assert found == wanted_NS[:, 8:].tolist()


def test_prompts_are_the_first_windows_that_are_long_enough_in_one_shape() -> None:
    ids_NS = torch.arange(40, dtype=torch.int32).view(5, 8)
    tokens = Output(tensors={"ids_NS": ids_NS, "lengths_N": torch.tensor([3, 8, 5, 6, 2])})
    assert prompts(tokens, 2, 5).tolist() == [list(range(8, 13)), list(range(16, 21))]
    assert prompts(tokens, 3, 8)[:, 0].tolist() == [8, 24, 16] and prompts(tokens, 3, 8).shape == (3, 5)
    assert prompts(tokens, 9, 1).shape == (5, 1)


@pytest.mark.parametrize(("named", "ends"), [(None, set()), (7, {7}), ([7, 9], {7, 9})])
def test_a_text_stops_before_its_end_token(named: object, ends: set[int]) -> None:
    assert end_tokens({"eos_token_id": named}) == ends

    class Counter:
        device = "cpu"

        def __call__(self, input_ids: torch.Tensor, **_: object) -> object:
            logits = torch.nn.functional.one_hot(input_ids[:, -1:] + 1, 20).float()
            return type("Out", (), {"logits": logits, "past_key_values": None})()

    wanted = [token for token in range(5, 11) if token < min(ends, default=99)]
    assert greedy(Counter(), torch.tensor([[4]]), 6, frozenset(ends)) == [wanted]


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"(?s)tokenizer does not load.*tokenizer\.json"):
        open_tokenizer(tmp_path)
