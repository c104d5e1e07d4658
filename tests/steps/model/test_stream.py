"""The streamed model is the whole model: oracle is transformers' own forward pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models import (
    FAMILIES,
    Watched,
    block_view,
    model_tensors,
    tiny_config,
    tiny_tokens,
    tiny_transformer,
    tiny_value,
    value_of,
    write_model,
)

from schemas.errors import InputError
from steps.model.stream import Stream
from steps.model.swap import run_swapped
from steps.model.whole import all_blocks, hidden_from, logits_from
from steps.model.windows import advance, valid_NS
from steps.step import Output

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def streamed_logits(stream: Stream, ids_NS: torch.Tensor) -> torch.Tensor:
    """Logits with one block resident at a time."""
    hidden_NSD = stream.embed(ids_NS)
    for k in range(stream.blocks):
        hidden_NSD = stream.run(stream.block(k), hidden_NSD)
    return stream.logits(stream.final(hidden_NSD))


def changed(model: Output, **tensors: torch.Tensor | None) -> Output:
    """The model with some tensors of block 1 replaced (None: removed); `__` stands for a dot."""
    named = {f"model.layers.1.{name.replace('__', '.')}": t for name, t in tensors.items()}
    kept = {n: t for n, t in {**model.tensors, **named}.items() if t is not None}
    return Output(model.meta, kept)


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_streamed_logits_equal_the_whole_models(family: str, tied: bool) -> None:
    config = tiny_config(family, tied=tied)
    whole = tiny_transformer(config)
    model = value_of(config, model_tensors(whole))
    assert ("lm_head.weight" in model.tensors) != tied
    ids_NS = tiny_tokens(ragged=False).tensors["ids_NS"]
    expected = whole(input_ids=ids_NS.long()).logits
    torch.testing.assert_close(streamed_logits(Stream(model), ids_NS), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"rope_parameters": LLAMA3_ROPE}),
        ("llama", {"rope_theta": 500.0}),
        ("mistral", {"sliding_window": 16}),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 4}),
        ("qwen3", {"head_dim": 16, "num_key_value_heads": 4}),
    ],
)
def test_streamed_logits_follow_the_configuration(family: str, changes: dict[str, object]) -> None:
    config = tiny_config(family, **changes)
    whole = tiny_transformer(config)
    ids_NS = tiny_tokens(ragged=False).tensors["ids_NS"]
    expected = whole(input_ids=ids_NS.long()).logits
    streamed = streamed_logits(Stream(value_of(config, model_tensors(whole))), ids_NS)
    torch.testing.assert_close(streamed, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("family", ["qwen2", "mixtral", "qwen2_moe", "qwen3_moe"])
def test_weights_read_from_disk_in_bf16_give_transformers_logits(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = tiny_value(family, tied=True, dtype=torch.bfloat16)
    folder = write_model(tmp_path / "m", model, shards=2)
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids_NS = tiny_tokens(ragged=False).tensors["ids_NS"]
    expected = whole(input_ids=ids_NS.long()).logits
    torch.testing.assert_close(streamed_logits(Stream(model), ids_NS), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_right_padding_is_harmless(tiny_model: Output, tokens: Output) -> None:
    stream, valid, ids_NS = Stream(tiny_model), valid_NS(tokens), tokens.tensors["ids_NS"]
    assert not valid.all()
    padded = streamed_logits(stream, ids_NS)
    other = streamed_logits(stream, torch.where(valid, ids_NS, 5))
    assert torch.equal(padded[valid], other[valid])
    for row, length in enumerate(tokens.tensors["lengths_N"].tolist()):
        alone = streamed_logits(stream, ids_NS[row : row + 1, :length])
        torch.testing.assert_close(padded[row, :length], alone[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_one_block_is_read_at_a_time_and_each_weight_once(tiny_model: Output, tokens: Output) -> None:
    watched = Watched(tiny_model.tensors)
    streamed_logits(Stream(Output(tiny_model.meta, watched)), tokens.tensors["ids_NS"])
    order = [n.split(".")[2] if ".layers." in n else n for n in watched.reads]
    assert list(dict.fromkeys(order)) == [
        "model.embed_tokens.weight",
        "0",
        "1",
        "2",
        "model.norm.weight",
        "lm_head.weight",
    ]
    assert sorted(watched.reads) == sorted(tiny_model.tensors)


@torch.no_grad()
def test_a_block_is_a_copy_that_may_be_trained(tiny_model: Output) -> None:
    name = "self_attn.q_proj.weight"
    before = tiny_model.tensors[f"model.layers.0.{name}"].clone()
    block = Stream(tiny_model).block(0)
    block.get_parameter(name).add_(1.0)
    assert torch.equal(tiny_model.tensors[f"model.layers.0.{name}"], before)
    assert not any(p.requires_grad for p in block.parameters()) and not block.training


@torch.no_grad()
def test_a_block_view_is_enough_for_its_block(tiny_model: Output, tokens: Output) -> None:
    whole = Stream(tiny_model)
    hidden_NSD = whole.embed(tokens.tensors["ids_NS"])
    for k in range(whole.blocks):
        stream = Stream(block_view(tiny_model, k))
        assert torch.equal(stream.run(stream.block(k), hidden_NSD), whole.run(whole.block(k), hidden_NSD))
    assert torch.equal(Stream(block_view(tiny_model, 0)).embed(tokens.tensors["ids_NS"]), hidden_NSD)


@torch.no_grad()
def test_the_number_of_threads_does_not_change_a_bit() -> None:
    model = tiny_value(hidden_size=128, intermediate_size=256, head_dim=32, vocab_size=128)
    ids_NS, threads, seen = tiny_tokens(8, 64).tensors["ids_NS"], torch.get_num_threads(), []
    try:
        for n in (1, 2, 4):
            torch.set_num_threads(n)
            seen.append(streamed_logits(Stream(model), ids_NS))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2])


@torch.no_grad()
def test_swapping_equals_loading_a_model_with_those_weights(tiny_model: Output, tokens: Output) -> None:
    stream, name = Stream(tiny_model), "mlp.down_proj.weight"
    weight = torch.randn(tiny_model.tensors[f"model.layers.1.{name}"].shape, generator=torch.Generator().manual_seed(1))
    norm = torch.full((32,), 0.5)
    hidden_NSD, block = stream.embed(tokens.tensors["ids_NS"]), stream.block(1)
    replaced = changed(tiny_model, mlp__down_proj__weight=weight, input_layernorm__weight=norm)
    expected = Stream(replaced).run(Stream(replaced).block(1), hidden_NSD)
    plain = stream.run(block, hidden_NSD)
    swapped = run_swapped(stream, block, hidden_NSD, {name: weight, "input_layernorm.weight": norm})
    assert torch.equal(swapped, expected) and not torch.equal(swapped, plain)
    assert torch.equal(stream.run(block, hidden_NSD), plain)


def test_gradients_flow_into_swapped_weights(tiny_model: Output, tokens: Output) -> None:
    stream = Stream(tiny_model)
    weight = tiny_model.tensors["model.layers.1.mlp.up_proj.weight"].clone().requires_grad_()
    run_swapped(
        stream, stream.block(1), stream.embed(tokens.tensors["ids_NS"]), {"mlp.up_proj.weight": weight}
    ).sum().backward()
    assert weight.grad is not None and weight.grad.abs().sum() > 0


@torch.no_grad()
def test_logits_from_the_middle_equal_logits_from_the_start(tiny_model: Output, tokens: Output) -> None:
    stream, ids_NS = Stream(tiny_model), tokens.tensors["ids_NS"]
    blocks, expected = all_blocks(stream), streamed_logits(stream, ids_NS)
    hidden_NSD = stream.embed(ids_NS)
    for k, block in enumerate(blocks):
        assert torch.equal(logits_from(stream, blocks, k, hidden_NSD), expected)
        hidden_NSD = stream.run(block, hidden_NSD)
    assert torch.equal(hidden_from(stream, blocks, len(blocks), hidden_NSD), stream.final(hidden_NSD))
    with pytest.raises(InputError, match=r"(?s)wrong shape.*up_proj"):
        logits_from(stream, blocks, 0, stream.embed(ids_NS), {2: {"mlp.up_proj.weight": torch.zeros(2, 2)}})


def test_advance_works_in_place_and_in_batches_of_any_size(tiny_model: Output, tokens: Output) -> None:
    stream = Stream(tiny_model)
    block, hidden_NSD = stream.block(0), stream.embed(tokens.tensors["ids_NS"])
    expected, out_NSD = stream.run(block, hidden_NSD), torch.empty_like(hidden_NSD)
    advance(stream, block, hidden_NSD, out_NSD, 4)
    torch.testing.assert_close(out_NSD, expected, rtol=1e-5, atol=1e-5)
    advance(stream, block, hidden_NSD, hidden_NSD, 4)
    assert torch.equal(hidden_NSD, out_NSD)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"mlp__up_proj__weight": None}, "missing"),
        ({"mlp__up_proj__weight": torch.zeros(64, 31)}, r"\[64, 31\].*\[64, 32\]"),
        ({"mlp__up_proj__weight": torch.full((64, 32), float("nan"))}, "2048 of 2048 values are NaN"),
        ({"mlp__up_proj__bias": torch.zeros(64)}, "not one that this architecture has"),
    ],
)
def test_an_unusable_weight_is_named(tiny_model: Output, tensors: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(InputError, match=f"(?s){message}") as raised:
        Stream(changed(tiny_model, **tensors)).block(1)
    (name,) = tensors
    assert raised.value.where == f"tiny: model.layers.1.{name.replace('__', '.')}"


def test_stored_rotary_frequencies_are_ignored(tiny_model: Output) -> None:
    Stream(changed(tiny_model, self_attn__rotary_emb__inv_freq=torch.zeros(4))).block(1)


def test_outer_weights_and_inputs_are_checked(tiny_model: Output) -> None:
    bare = Output(tiny_model.meta, {"model.norm.weight": torch.full((32,), float("inf"))})
    with pytest.raises(InputError, match=r"(?s)not finite.*tiny: model\.norm\.weight"):
        Stream(bare).final(torch.zeros(1, 32))
    with pytest.raises(InputError, match=r"(?s)missing.*tiny: lm_head\.weight"):
        Stream(bare).logits(torch.zeros(1, 32))
    with pytest.raises(InputError, match=r"(?s)missing.*embed_tokens"):
        Stream(bare).embed(torch.zeros(1, 2, dtype=torch.int32))
    stream = Stream(tiny_model)
    with pytest.raises(InputError, match=r"(?s)outside the vocabulary.*97.*96"):
        stream.embed(torch.tensor([[0, 97]]))
    with pytest.raises(InputError, match=r"(?s)longer than.*65 tokens.*at most 64"):
        stream.run(stream.block(0), torch.zeros(1, 65, 32))


def test_an_unusable_configuration_is_refused(tiny_model: Output) -> None:
    config = tiny_model.meta["config"]
    with pytest.raises(InputError, match="unsupported model architecture"):
        Stream(Output({**tiny_model.meta, "config": {**config, "model_type": "gpt2"}}, tiny_model.tensors))
    with pytest.raises(InputError, match="refuses the model's configuration"):
        Stream(Output({**tiny_model.meta, "config": {**config, "hidden_size": "many"}}, tiny_model.tensors))


def test_a_sliding_window_limits_the_length() -> None:
    stream = Stream(tiny_value("mistral", sliding_window=8))
    with pytest.raises(InputError, match=r"(?s)longer than.*at most 8"):
        stream.run(stream.block(0), torch.zeros(1, 9, 32))
