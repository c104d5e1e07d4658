"""The reference is the whole model's final hidden states, made with one block resident."""

from __future__ import annotations

import weakref

import pytest
import torch
from models import FAMILIES, Watched, model_tensors, tiny_config, tiny_transformer, value_of

from schemas.calibrate import Reference
from steps.calibrate.reference import run
from steps.model.stream import Stream
from steps.model.windows import valid_NS
from steps.step import Env, Output

SPEC = Reference(step="reference", batch=4)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_reference_is_the_whole_models_final_hidden_states(family: str, tokens: Output) -> None:
    config = tiny_config(family, tied=family == "llama")
    whole = tiny_transformer(config)
    reference = run(SPEC, {"model": value_of(config, model_tensors(whole)), "tokens": tokens}, Env())["reference"]
    hidden_NSD = whole.model(input_ids=tokens.tensors["ids_NS"].long()).last_hidden_state
    expected = hidden_NSD[valid_NS(tokens)]
    torch.testing.assert_close(reference.tensors["hidden_TD"], expected, rtol=1e-5, atol=1e-5)
    assert reference.meta == {"tokens": tokens.meta["tokens"]}
    logits = whole.lm_head(expected)
    stream = Stream(value_of(config, model_tensors(whole)))
    torch.testing.assert_close(stream.logits(reference.tensors["hidden_TD"]), logits, rtol=1e-5, atol=1e-5)


def test_the_head_is_never_read_and_each_weight_once(tiny_model: Output, tokens: Output) -> None:
    watched = Watched(tiny_model.tensors)
    run(SPEC, {"model": Output(tiny_model.meta, watched), "tokens": tokens}, Env())
    assert sorted(watched.reads) == sorted(set(tiny_model.tensors) - {"lm_head.weight"})


def test_at_most_one_block_is_resident(tiny_model: Output, tokens: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[torch.nn.Module]] = []
    original, resident = Stream.block, []

    def counted(self: Stream, k: int) -> torch.nn.Module:
        resident.append(sum(ref() is not None for ref in alive))
        block = original(self, k)
        alive.append(weakref.ref(block))
        return block

    monkeypatch.setattr(Stream, "block", counted)
    run(SPEC, {"model": tiny_model, "tokens": tokens}, Env())
    assert resident == [0, 0, 0]


def test_progress_is_told(tiny_model: Output, tokens: Output) -> None:
    told: list[tuple[int, int]] = []
    env = Env(progress=lambda done, total, what: told.append((done, total)))
    run(SPEC, {"model": tiny_model, "tokens": tokens}, env)
    assert told == [(1, 3), (2, 3), (3, 3)]
