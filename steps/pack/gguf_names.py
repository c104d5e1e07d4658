"""What GGUF calls a model's parameters, how each is stored, and which have their rows in another order. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from schemas.errors import InputError
from schemas.format import Affine, Format, Ggml, GgmlType
from steps.pack.gguf_file import Info

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""config.json's model_type -> general.architecture."""

_OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_INSIDE = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_BLOCK = re.compile(r"model\.layers\.(\d+)\.(.+)")

EXACT: dict[int, GgmlType] = {4: "q4_0", 5: "q5_0", 8: "q8_0"}
"""Bits of a signed or symmetric affine format -> the type whose blocks of 32 hold the same codes and scales."""

PLAIN = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
"""How matrices that are not quantized are stored; vectors are always f32, as llama.cpp wants them."""

DERIVED = "rotary_emb.inv_freq"
"""What old checkpoints store although it follows from the config; llama.cpp knows no such tensor."""


def gguf_name(parameter: str) -> str:
    """`model.layers.3.self_attn.q_proj.weight` -> `blk.3.attn_q.weight`; InputError for one without a name."""
    module, _, kind = parameter.rpartition(".")
    if module in _OUTSIDE:
        return f"{_OUTSIDE[module]}.{kind}"
    match = _BLOCK.fullmatch(module)
    if match is None or match[2] not in _INSIDE:
        raise InputError(
            "GGUF has no name for a parameter",
            where=parameter,
            wanted=f"a model of type {', '.join(ARCHITECTURES)}",
            fix="pack to another file format",
        )
    return f"blk.{match[1]}.{_INSIDE[match[2]]}.{kind}"


def heads_of(config: Mapping[str, Any], parameter: str) -> int | None:
    """Into how many heads the rows of a parameter are cut and re-ordered; None when they stay as they are.

    llama.cpp rotates neighbouring pairs where transformers rotates halves (`LlamaModel.permute` of its converter), in
    the llama architecture alone.
    """
    if ARCHITECTURES.get(config["model_type"]) != "llama":
        return None
    heads = int(config["num_attention_heads"])
    if ".q_proj." in parameter:
        return heads
    return int(config.get("num_key_value_heads") or heads) if ".k_proj." in parameter else None


def stored_as(fmt: Format) -> GgmlType | None:
    """The type that holds a format without any rounding; None when there is none."""
    match fmt:
        case Ggml():
            return fmt.type
        case Affine():
            return None if fmt.symmetry == "asymmetric" else EXACT.get(fmt.bits)
        case _:
            return None


def infos(
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, str],
    linears: Mapping[str, Format],
) -> dict[str, Info]:
    """Every tensor of the file by the parameter it is made from, in the order of `shapes`."""
    return {
        name: Info(gguf_name(name), _type(name, shape, dtypes, linears), shape)
        for name, shape in shapes.items()
        if not name.endswith(DERIVED)
    }


def _type(name: str, shape: tuple[int, ...], dtypes: Mapping[str, str], linears: Mapping[str, Format]) -> str:
    fmt = linears.get(name.removesuffix(".weight"))
    if fmt is not None:
        return matrix_type(fmt, name)
    if len(shape) == 1:
        return "f32"
    if dtypes[name] not in PLAIN:
        got, wanted = dtypes[name], ", ".join(PLAIN)
        raise InputError("a tensor has a dtype that is not written", where=name, got=got, wanted=wanted)
    return PLAIN[dtypes[name]]


def matrix_type(fmt: Format, where: str = "") -> GgmlType:
    """The type that a quantized matrix is stored in; InputError for a format that GGUF cannot hold exactly."""
    kind = stored_as(fmt)
    if kind is None:
        raise InputError("GGUF cannot hold a format", where=where, got=fmt.name, wanted=expressible(), fix=why(fmt))
    return kind


def expressible() -> str:
    """What can be packed, for messages."""
    return "q2_k to q6_k, q4_0, q5_0, q8_0, iq4_nl, tq1_0, tq2_0, f16, and int4, int5, int8 without zero points"


def why(fmt: Format) -> str:
    """What to use instead."""
    if isinstance(fmt, Affine) and fmt.symmetry == "asymmetric" and fmt.bits in EXACT:
        return f"use {Affine(bits=fmt.bits, group_size=fmt.group_size).name}, whose signed scale needs no zero point"
    near: dict[int, str] = {2: "q2_k", 3: "q3_k", 4: "q4_k", 5: "q5_k", 6: "q6_k", 8: "q8_0"}
    return f"use {near.get(round(fmt.bits), 'q4_k')}"
