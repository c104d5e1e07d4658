"""Names of things: digests, ports, units of a model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from schemas.base import Spec

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]

PortType = Literal[
    "model",  # config, tokenizer files, lazily read weights
    "documents",  # texts with names
    "tokens",  # windows of token ids
    "statistics",  # per block: Hessians, ranges, norms
    "reference",  # final hidden states of the original on some tokens
    "candidates",  # per (unit, format): quantized tensors
    "scores",  # per (unit, format): predicted damage with its spread over documents
    "interactions",  # per pair of neighbouring units: how far their damage together is from the sum
    "plan",  # unit -> format, with its certificate
    "selection",  # unit -> quantized tensors
    "refined",  # per block: the part of a selection that lies in it, refined
    "evaluation",  # per-document KL, negative log-likelihood, top-1
    "packed",  # a folder that an engine loads
    "verdict",  # metrics and gates measured on the packed file
    "generations",  # what the original and the packed model write after the same prompts
    "additivity",  # a plan's predicted damage against its measured one, on the same text
]


class Unit(Spec):
    """What gets one format: a linear, linears that engines fuse, a whole block, an expert, the embedding, the head.

    `name` is for people, for example `layers.3.self_attn.qkv`, and says which matrices these are however else a model
    may be cut. `members` are full module paths as in the checkpoint, for example `model.layers.3.self_attn.q_proj`;
    `statistics` names each member's Hessian within the statistics of decoder block `block`. What lies outside the
    blocks reads those of the last one. `use`: `tied` is one matrix that is both the embedding and the head.
    """

    name: str
    block: int = Field(ge=0)
    members: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]
    statistics: tuple[str, ...]
    use: Literal["linear", "embedding", "head", "tied"] = "linear"


def item_name(unit: str, format_name: str) -> str:
    """Name of one (unit, format) child of a candidates or scores artifact."""
    return f"{unit}/{format_name}"


def unit_name(item: str) -> str:
    """The unit of an item's name."""
    return item.rpartition("/")[0]
