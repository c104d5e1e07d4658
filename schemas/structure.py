"""What a supported decoder looks like on disk: its parameters and their shapes, from the config alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from schemas.errors import InputError
from schemas.mixture import MAX_EXPERTS, MIXTURES, expert_count, mixture, mixture_shapes, required_fields

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3", *MIXTURES)
EMBEDDING, FINAL_NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
MAX_BLOCKS = 4096  # ten times the deepest model there is; a config beyond it is damaged
QWEN3_HEAD_DIM = 128  # transformers, Qwen3Config.head_dim

_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
)


def check_supported(config: Mapping[str, Any], where: str) -> None:
    """Raise InputError unless the architecture is one that is walked correctly here."""
    kind = config.get("model_type")
    if kind not in SUPPORTED:
        raise InputError(
            "unsupported model architecture",
            where=where,
            got=kind,
            wanted=", ".join(SUPPORTED),
            fix="choose a causal language model of one of these families",
        )


def is_tied(config: Mapping[str, Any]) -> bool:
    """Whether the output head is the embedding; false when unsaid, as in all supported families."""
    return bool(config.get("tie_word_embeddings", False))


@dataclass(frozen=True)
class Sizes:
    """Dimensions of a decoder: hidden, MLP, query heads x D, key-value heads x D, D, vocabulary, blocks."""

    hidden: int
    inner: int
    query: int
    key_value: int
    head: int
    vocabulary: int
    blocks: int


def sizes(config: Mapping[str, Any], where: str) -> Sizes:
    """Dimensions read from a supported config; InputError names the field that is missing or impossible."""
    check_supported(config, where)
    fields = {name: _positive(config, name, where) for name in _SIZES}
    if config.get("sliding_window") is not None:
        _positive(config, "sliding_window", where)
    heads = fields["num_attention_heads"]
    check_mixture(config, where)
    groups = _positive(config, "num_key_value_heads", where, heads if config["model_type"] == "llama" else None)
    implied = QWEN3_HEAD_DIM if config["model_type"] == "qwen3" else fields["hidden_size"] // heads
    head = _positive(config, "head_dim", where, implied)
    if heads % groups or head % 2:
        raise InputError(
            "impossible attention sizes in the config",
            where=where,
            got=f"{heads} query heads over {groups} key-value heads, head size {head}",
            wanted="query heads divisible by key-value heads, an even head size",
        )
    if fields["num_hidden_layers"] > MAX_BLOCKS:
        raise _bad_field("num_hidden_layers", fields["num_hidden_layers"], f"at most {MAX_BLOCKS}", where)
    return Sizes(
        fields["hidden_size"],
        fields["intermediate_size"],
        heads * head,
        groups * head,
        head,
        fields["vocab_size"],
        fields["num_hidden_layers"],
    )


def check_mixture(config: Mapping[str, Any], where: str) -> None:
    """InputError naming the field of a mixture of experts that is missing or impossible."""
    if config["model_type"] not in MIXTURES:
        return
    chosen, *_ = (_positive(config, name, where) for name in required_fields(config))
    experts = expert_count(config)
    if not chosen <= experts:
        got, wanted = f"{experts or 'no'} experts, {chosen} of them per token", f"1 to {MAX_EXPERTS}, at least as many"
        raise InputError("impossible number of experts in the config", where=where, got=got, wanted=wanted)
    dense = config.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(type(block) is int for block in dense):
        raise _bad_field("mlp_only_layers", repr(dense), "a list of block numbers", where)
    _positive(config, "decoder_sparse_step", where, 1)


def _bad_field(name: str, got: object, wanted: str, where: str) -> InputError:
    return InputError(f"bad config field {name}", where=where, got=got, wanted=wanted, fix="repair config.json")


def _positive(config: Mapping[str, Any], name: str, where: str, default: int | None = None) -> int:
    value = config.get(name)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _bad_field(name, "nothing" if value is None else repr(value), "a positive integer", where)
    return value


def _block_shapes(config: Mapping[str, Any], size: Sizes, block: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name within the block, shape) of one decoder block."""
    kind = config["model_type"]
    output_bias = kind in ("llama", "qwen3", "qwen3_moe") and bool(config.get("attention_bias", False))
    input_bias = output_bias or kind == "qwen2" or (kind == "qwen2_moe" and bool(config.get("qkv_bias", True)))
    yield from _linear("self_attn.q_proj", size.query, size.hidden, input_bias)
    yield from _linear("self_attn.k_proj", size.key_value, size.hidden, input_bias)
    yield from _linear("self_attn.v_proj", size.key_value, size.hidden, input_bias)
    yield from _linear("self_attn.o_proj", size.hidden, size.query, output_bias)
    found = mixture(config, block)
    if found is not None:
        yield from mixture_shapes(found, size.hidden)
    else:
        bias = kind == "llama" and bool(config.get("mlp_bias", False))
        yield from _linear("mlp.gate_proj", size.inner, size.hidden, bias)
        yield from _linear("mlp.up_proj", size.inner, size.hidden, bias)
        yield from _linear("mlp.down_proj", size.hidden, size.inner, bias)
    yield "input_layernorm.weight", (size.hidden,)
    yield "post_attention_layernorm.weight", (size.hidden,)
    if kind in ("qwen3", "qwen3_moe"):
        yield "self_attn.q_norm.weight", (size.head,)
        yield "self_attn.k_norm.weight", (size.head,)


def _linear(name: str, rows: int, columns: int, bias: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (rows, columns)
    if bias:
        yield f"{name}.bias", (rows,)


def expected_shapes(config: Mapping[str, Any], where: str) -> dict[str, tuple[int, ...]]:
    """Every parameter of the architecture with its shape; without `lm_head.weight` when the head is tied."""
    size = sizes(config, where)
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (size.vocabulary, size.hidden)}
    for block in range(size.blocks):
        shapes |= {f"model.layers.{block}.{name}": shape for name, shape in _block_shapes(config, size, block)}
    shapes[FINAL_NORM] = (size.hidden,)
    if not is_tied(config):
        shapes[HEAD] = (size.vocabulary, size.hidden)
    return shapes
