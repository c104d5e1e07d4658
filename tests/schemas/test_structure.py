"""The parameter list of each architecture against transformers' own modules: an exact oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import as_stored, tiny_config

from schemas.errors import InputError
from schemas.structure import SUPPORTED, expected_shapes

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((family, {}) for family in SUPPORTED),
    *((family, {"head_dim": None}) for family in SUPPORTED),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"num_key_value_heads": None}),
    ("llama", {"head_dim": 12, "tie_word_embeddings": True}),
    ("mistral", {"attention_bias": True}),  # no such field there: ignored
    ("qwen3", {"attention_bias": True}),
    ("qwen3_moe", {"attention_bias": True, "decoder_sparse_step": 2}),
    ("qwen3_moe", {"mlp_only_layers": [0, 2]}),
    ("qwen2_moe", {"qkv_bias": False, "mlp_only_layers": None}),
]


@pytest.mark.parametrize(("family", "changes"), VARIANTS)
def test_same_parameters_as_transformers(family: str, changes: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = {k: v for k, v in tiny_config(family, **changes).items() if v is not None or k == "sliding_window"}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family].from_dict(dict(config)))
    stored = (pair for name, p in model.named_parameters() for pair in as_stored(name, p, family))
    assert expected_shapes(config, "test") == {name: tuple(tensor.shape) for name, tensor in stored}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "unsupported model architecture"),
        ({"model_type": None}, "unsupported model architecture"),
        ({"hidden_size": None}, "bad config field hidden_size"),
        ({"hidden_size": -32}, "bad config field hidden_size"),
        ({"hidden_size": "32"}, "bad config field hidden_size"),
        ({"vocab_size": True}, "bad config field vocab_size"),
        ({"num_hidden_layers": 10**9}, "bad config field num_hidden_layers"),
        ({"sliding_window": "4k"}, "bad config field sliding_window"),
        ({"num_key_value_heads": 3}, "impossible attention sizes"),
        ({"head_dim": 7}, "impossible attention sizes"),
    ],
)
def test_impossible_configs_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        expected_shapes(tiny_config() | change, "config.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts": None}, r"impossible number of experts(?s:.*)no experts, 2 of them"),
        ({"num_experts": 1}, "impossible number of experts"),
        ({"num_experts": 10**9}, "impossible number of experts"),
        ({"num_experts_per_tok": 0}, "bad config field num_experts_per_tok"),
        ({"moe_intermediate_size": "32"}, "bad config field moe_intermediate_size"),
        ({"mlp_only_layers": ["1"]}, "bad config field mlp_only_layers"),
        ({"decoder_sparse_step": 0}, "bad config field decoder_sparse_step"),
    ],
)
def test_impossible_mixtures_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        expected_shapes(tiny_config("qwen3_moe") | change, "config.json")


def test_key_value_heads_are_only_implied_for_llama() -> None:
    with pytest.raises(InputError, match="num_key_value_heads"):
        expected_shapes(tiny_config("qwen2") | {"num_key_value_heads": None}, "config.json")


def test_a_gguf_in_several_files_is_refused_not_ignored() -> None:
    from functools import partial

    from schemas.pack import Pack, Packing

    for make in (Packing, partial(Pack, step="pack")):
        with pytest.raises(ValueError, match="one file: leave shard_bytes out"):
            make(format="gguf", shard_bytes=1000)
        assert make(format="bitsmith", shard_bytes=1000).shard_bytes == 1000
