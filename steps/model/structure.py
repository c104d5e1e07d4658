"""The shape of a decoder as plain data: which linears share an input, which must share a format, what weighs what.

Torch-free, so that a plan can be made before torch is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from schemas.artifact import Unit
from schemas.structure import SUPPORTED as SUPPORTED
from schemas.structure import check_supported as check_supported


@dataclass(frozen=True)
class OrderGroup:
    """Linears of a block that read the same input; engines fuse them, so they are one unit."""

    name: str
    members: tuple[str, ...]


ORDER_GROUPS = (
    OrderGroup("self_attn.qkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    OrderGroup("self_attn.o", ("self_attn.o_proj",)),
    OrderGroup("mlp.gate_up", ("mlp.gate_proj", "mlp.up_proj")),
    OrderGroup("mlp.down", ("mlp.down_proj",)),
)


def block_prefix(block: int) -> str:
    """Prefix of the parameter names of a decoder block."""
    return f"model.layers.{block}."


def units(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> list[Unit]:
    """All units in model order; `shapes` maps parameter names to shapes."""
    found = []
    for block in range(int(config["num_hidden_layers"])):
        for group in ORDER_GROUPS:
            members = tuple(f"{block_prefix(block)}{m}" for m in group.members)
            found.append(
                Unit(
                    name=f"layers.{block}.{group.name}",
                    block=block,
                    members=members,
                    shapes=tuple((shapes[f"{m}.weight"][0], shapes[f"{m}.weight"][1]) for m in members),
                    statistics=group.name,
                )
            )
    return found


def max_length(config: Mapping[str, Any]) -> int:
    """Longest window on which plain causal attention is what the model computes."""
    limit = int(config["max_position_embeddings"])
    window = config.get("sliding_window")
    return min(limit, int(window)) if window and config.get("use_sliding_window", True) else limit
