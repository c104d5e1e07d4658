"""How much memory a build will take: that of its hungriest step, from shapes alone. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

from schemas.calibrate import Tokenize
from schemas.distill import Recode
from schemas.recipe import Recipe
from schemas.structure import EMBEDDING
from schemas.verify import Generate, Measure, Verify
from steps.model.offers import Offer
from steps.model.structure import block_prefix, last_block, max_length, order_groups
from steps.verify.loading import asked, whole_bytes

FP64, FP32, BF16 = 8, 4, 2
PROCESS = 512 * 2**20
"""Of torch and transformers once imported and of tracking: 403 to 527 MiB were resident."""
RESIDENT = frozenset({"kl_probe", "pair_probe", "hutchinson", "distill"})
"""Steps that hold the whole model in fp32, and as much again: gradients, a second model, or cached activations."""


def memory(recipe: Recipe, offered: Sequence[Offer], meta: Mapping[str, Any]) -> int:
    """Bytes: the process, the hidden states of the longest text twice, and what the hungriest step holds beside them.

    Nothing here depends on the number of blocks unless a step holds the whole model, or what enters every block.
    """
    config, shapes = meta["config"], meta["shapes"]
    blocks = [_block(config, shapes, k) for k in range(last_block(config) + 1)]
    quantizing = max(4 * FP32 * sum(rows * columns for rows, columns in offer.unit.shapes) for offer in offered)
    heads = 2 * FP32 * prod(shapes[EMBEDDING])  # the original's and the changed one's, to compare logits
    resident: int = max([*_resident(recipe, shapes), *_kept(recipe, config)], default=0)
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


def _resident(recipe: Recipe, shapes: Mapping[str, Sequence[int]]) -> Iterator[int]:
    """Bytes of each step that holds the whole model; a packed one in its own dtype, then widened to fp32."""
    everything = whole_bytes(shapes)
    for node in recipe.nodes.values():
        if node.spec.step in RESIDENT:
            yield 2 * everything
        elif isinstance(node.spec, Verify | Measure | Generate) and asked(node.spec, shapes) == "whole":
            yield everything + everything * BF16 // FP32


def _kept(recipe: Recipe, config: Mapping[str, Any]) -> Iterator[int]:
    """Bytes of what enters every block, which `recode` keeps for its windows until the backward pass has used it."""
    for node in recipe.nodes.values():
        if isinstance(node.spec, Recode):
            text = recipe.nodes[node.inputs["tokens"].partition(".")[0]].spec
            length = min(text.length, max_length(config)) if isinstance(text, Tokenize) else max_length(config)
            yield FP32 * node.spec.windows * length * int(config["hidden_size"]) * (last_block(config) + 2)
