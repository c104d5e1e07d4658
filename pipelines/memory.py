"""How much memory a build will take, that of its hungriest step, and scratch; from shapes alone. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

from schemas.calibrate import Tokenize
from schemas.distill import Recode
from schemas.mixture import mixture
from schemas.recipe import Node, Recipe
from schemas.sensitivity import Fisher, FisherRows
from schemas.structure import EMBEDDING
from schemas.verify import Generate, Measure, Verify
from steps.model.offers import Offer
from steps.model.structure import block_prefix, last_block, max_length, order_groups
from steps.verify.loading import asked, whole_bytes

FP64, FP32, BF16 = 8, 4, 2
PROCESS = 512 * 2**20
"""Of torch and transformers once imported and of tracking: 403 to 527 MiB were resident."""
DESCENT = 10
"""Matrices of a linear's size that `recode` holds while it chooses the linear's codes, beside the curvature."""
RESIDENT = frozenset({"kl_probe", "pair_probe", "rescore", "hutchinson", "distill"})
"""Steps that hold the whole model in fp32, and as much again: gradients, or a second model."""
PROBES = frozenset({"kl_probe", "pair_probe", "rescore"})
"""Those of them that keep, of their whole text, what enters every block and its second half."""


def memory(recipe: Recipe, offered: Sequence[Offer], meta: Mapping[str, Any]) -> int:
    """Bytes: the process, the hidden states of the longest text twice, and what the hungriest step holds beside them.

    Nothing here depends on the number of blocks unless a step holds the whole model.
    """
    config, shapes = meta["config"], meta["shapes"]
    blocks = [_block(config, shapes, k) for k in range(last_block(config) + 1)]
    quantizing = max(4 * FP32 * sum(rows * columns for rows, columns in offer.unit.shapes) for offer in offered)
    heads = 2 * FP32 * prod(shapes[EMBEDDING])  # the original's and the changed one's, to compare logits
    resident: int = max([*_resident(recipe, config, shapes), *_backward(recipe, config, shapes)], default=0)
    most: int = max(*blocks, quantizing, heads, resident)
    return PROCESS + _hidden(recipe, config) + most


def _block(config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], block: int) -> int:
    """Of collecting a block's statistics: its file's pages, its weights in fp32, for every group a sum in fp64 and a
    Hessian in fp32, and of the widest two more in fp64 while its sum is made symmetric."""
    prefix = block_prefix(block)
    weights = sum(prod(shape) for name, shape in shapes.items() if name.startswith(prefix))
    squares = [shapes[f"{prefix}{g.members[0]}.weight"][1] ** 2 for g in order_groups(config, block)]
    return (BF16 + FP32) * weights + (FP64 + FP32) * sum(squares) + 2 * FP64 * max(squares)


def _hidden(recipe: Recipe, config: Mapping[str, Any]) -> int:
    """What goes into a block and what comes out, of the text with the most tokens."""
    specs = [node.spec for node in recipe.nodes.values() if isinstance(node.spec, Tokenize)]
    tokens = max((spec.windows * min(spec.length, max_length(config)) for spec in specs), default=0)
    return 2 * FP32 * tokens * int(config["hidden_size"])


def _resident(recipe: Recipe, config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> Iterator[int]:
    """Bytes of each step that holds the whole model; a packed one in its own dtype, then widened to fp32."""
    everything = whole_bytes(shapes)
    for node in recipe.nodes.values():
        if node.spec.step in RESIDENT:
            kept = 2 * (last_block(config) + 1) if node.spec.step in PROBES else 0
            yield 2 * everything + kept * FP32 * prod(_text(recipe, node, config)) * int(config["hidden_size"])
        elif isinstance(node.spec, Verify | Measure | Generate) and asked(node.spec, shapes) == "whole":
            yield everything + everything * BF16 // FP32


def scratch(recipe: Recipe, meta: Mapping[str, Any]) -> int:
    """Bytes on disk while a backward pass lasts: what enters every block and what leaves the last, and new codes."""
    config, shapes = meta["config"], meta["shapes"]
    codes = sum(prod(shape) for shape in shapes.values() if len(shape) == 2)
    token = FP32 * int(config["hidden_size"])
    return max(
        (
            windows * length * token * (last_block(config) + 2 + spec.samples) + codes * isinstance(spec, Recode)
            for spec, windows, length in _passes(recipe, config)
        ),
        default=0,
    )


def _backward(recipe: Recipe, config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> Iterator[int]:
    """Bytes of each backward pass, at the hungriest block: weights; the graph of a batch, twice what its linears see
    and send back (`fisher` keeps that of all batches); for `recode` both moments of every linear, and a descent."""
    for spec, windows, length in _passes(recipe, config):
        tokens = length * (windows * isinstance(spec, Fisher) + 2 * min(spec.batch, windows))
        moments = isinstance(spec, Recode)
        yield max(_passed(config, shapes, k, tokens, spec.samples, moments) for k in range(last_block(config) + 1))


def _passes(recipe: Recipe, config: Mapping[str, Any]) -> Iterator[tuple[Fisher | FisherRows | Recode, int, int]]:
    """Every backward pass with its windows and their length."""
    for node in recipe.nodes.values():
        if isinstance(node.spec, Fisher | FisherRows | Recode):
            there, length = _text(recipe, node, config)
            asked_for = node.spec.windows if isinstance(node.spec, Recode) else there
            yield node.spec, min(asked_for, there or asked_for), length


def _text(recipe: Recipe, node: Node, config: Mapping[str, Any]) -> tuple[int, int]:
    """Windows that a node reads, and their length; of tokens from elsewhere 0 windows are known."""
    text = recipe.nodes[node.inputs["tokens"].partition(".")[0]].spec
    if not isinstance(text, Tokenize):
        return 0, max_length(config)
    return text.windows, min(text.length, max_length(config))


def _passed(
    config: Mapping[str, Any],
    shapes: Mapping[str, Sequence[int]],
    block: int,
    tokens: int,
    samples: int,
    moments: bool,
) -> int:
    prefix, numbers, descent = block_prefix(block), 0, 0
    found = mixture(config, block)
    for group in order_groups(config, block):
        sizes = [shapes[f"{prefix}{member}.weight"] for member in group.members]
        rows, columns = [size[0] for size in sizes], sizes[0][1]
        seen = tokens
        if found is not None and group.expert is not None:
            seen = -(-tokens * int(config["num_experts_per_tok"]) // found.experts)
        numbers += sum(rows) * columns + seen * (columns + samples * sum(rows))
        numbers += (columns**2 + sum(each**2 for each in rows)) * moments
        # Both factors damped, one of them on its way, and columns of the gradients' for as many moves as rows.
        descent = max(descent, *(DESCENT * each * columns + 2 * columns**2 + 4 * each**2 for each in rows))
    return FP32 * (numbers + descent * moments)
