"""What llama.cpp must know of an architecture, from config.json. Torch-free.

Source: convert_hf_to_gguf.py of llama.cpp (`LlamaModel`, `Qwen2Model`, `Qwen3Model`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from schemas.structure import sizes
from steps.pack.gguf_names import ARCHITECTURES

QUANTIZATION_VERSION = 2
"""GGML_QNT_VERSION."""


NO_PLACE = {"attention_factor", "mscale", "mscale_all_dim"}
"""Parameters of yarn that its keys cannot say."""


def rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of the rotary embedding with `rope_type` and `rope_theta`, however old the config is."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = given.get("rope_theta") or config.get("rope_theta") or 10000.0
    kind = given.get("rope_type") or given.get("type") or "default"
    return {**given, "rope_type": kind, "rope_theta": float(theta)}


def refusals(config: Mapping[str, Any]) -> Iterator[str]:
    """Why llama.cpp would not compute what the model computes."""
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        yield f"GGUF is written for {', '.join(ARCHITECTURES)}, not for {kind}"
        return
    if config.get("hidden_act", "silu") != "silu":
        yield f"llama.cpp computes {kind} with silu, not with {config['hidden_act']}"
    if kind == "qwen3" and config.get("attention_bias"):
        yield "llama.cpp's qwen3 has no attention biases"
    found = rope(config)
    if found["rope_type"] not in ("default", "linear", "yarn", "llama3"):
        yield f"rope type {found['rope_type']} is not written; default, linear, yarn and llama3 are"
    if found["rope_type"] == "yarn" and (extra := sorted(NO_PLACE & set(found))):
        yield f"rope parameter {extra[0]} has no place in GGUF"


def architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    """Keys and values, general ones first."""
    kind, size = ARCHITECTURES[config["model_type"]], sizes(config, "config.json")
    heads = int(config["num_attention_heads"])
    facts = {
        "block_count": size.blocks,
        "context_length": int(config["max_position_embeddings"]),
        "embedding_length": size.hidden,
        "feed_forward_length": size.inner,
        "attention.head_count": heads,
        "attention.head_count_kv": size.key_value // size.head,
        "attention.key_length": size.head,
        "attention.value_length": size.head,
        "attention.layer_norm_rms_epsilon": float(config.get("rms_norm_eps", 1e-6)),
        "rope.dimension_count": size.head,
        "rope.freq_base": rope(config)["rope_theta"],
        "vocab_size": size.vocabulary,
        **_scaling(rope(config)),
    }
    general = {"general.architecture": kind, "general.quantization_version": QUANTIZATION_VERSION}
    return general | {f"{kind}.{key}": value for key, value in facts.items()}


def _scaling(found: Mapping[str, Any]) -> dict[str, Any]:
    match found["rope_type"]:
        case "linear":
            return {"rope.scaling.type": "linear", "rope.scaling.factor": float(found["factor"])}
        case "yarn":
            return {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": float(found["factor"]),
                "rope.scaling.original_context_length": int(found["original_max_position_embeddings"]),
            }
        case _:
            return {}


def rope_factors(config: Mapping[str, Any]) -> list[float] | None:
    """What llama3's scaling divides each frequency by, the tensor `rope_freqs.weight`; None for other types.

    Source: `LlamaModel.generate_extra_tensors` of the converter.
    """
    found, dimensions = rope(config), sizes(config, "config.json").head
    if found["rope_type"] != "llama3":
        return None
    factor, old = float(found["factor"]), float(found["original_max_position_embeddings"])
    low, high = float(found["low_freq_factor"]), float(found["high_freq_factor"])
    factors = []
    for i in range(0, dimensions, 2):
        length = 2 * math.pi * found["rope_theta"] ** (i / dimensions)
        smooth = (old / length - low) / (high - low)
        scaled = 1 / ((1 - smooth) / factor + smooth) if old / high <= length <= old / low else factor
        factors.append(1.0 if length < old / high else scaled)
    return factors
