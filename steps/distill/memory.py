"""Will training fit? An estimate in bytes from shapes alone, and what the machine has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from schemas.distill import Adam, Blocks, Distill, Training
from schemas.errors import InputError
from schemas.mixture import mixture
from steps.distill.schedule import held_out_of
from steps.model.structure import block_prefix

FP32, INT16 = 4, 2
LOGITS = 7
"""Rows of logits per position at the peak of the loss: both models', log-probabilities and gradients; counted."""


def batch_tokens(spec: Training, windows: int, length: int) -> int:
    """Tokens of the largest batch that training takes of so many windows of `length` tokens."""
    fresh = max(windows - held_out_of(windows, spec.held_out), 1)  # of fewer windows than can be split, refused later
    return min(spec.batch, fresh) * length


def training_bytes(spec: Training, meta: Mapping[str, Any], tokens: int, all_tokens: int = 0) -> int:
    """Memory that training the whole model on batches of `tokens` tokens takes at least, in bytes.

    The original's weights in fp32; of every linear the codes twice (as given, as trained) in int16, dequantized weights
    with their gradients in fp32 and, when codes are trained, the variable with its gradient and Adam's two moments; per
    token of a batch the activations a backward pass keeps (see `_activations`), and 7 rows of logits; and, where blocks
    are trained in turn, what enters a block in both models and its target for `all_tokens`, as in `block_bytes`.
    """
    config, shapes = meta["config"], meta["shapes"]
    weights = sum(_numel(shape) for shape in shapes.values())
    linears = sum(_numel(s) for name, s in shapes.items() if name.startswith("model.layers.") and len(s) > 1)
    blocks = sum(_activations(config, block) for block in range(int(config["num_hidden_layers"])))
    per_token = blocks + LOGITS * int(config["vocab_size"])
    by_blocks = isinstance(spec, Distill) and isinstance(spec.scope, Blocks)
    waiting = 3 * all_tokens * int(config["hidden_size"]) if by_blocks else 0
    return FP32 * weights + linears * per_weight(spec) + FP32 * (tokens * per_token + waiting)


def block_bytes(spec: Training, meta: Mapping[str, Any], block: int, tokens: int, all_tokens: int) -> int:
    """The same for one block on batches of `tokens` tokens, and its inputs and targets for `all_tokens` in fp32.

    These wait outside a GPU: there 0 of them count.
    """
    config, prefix = meta["config"], block_prefix(block)
    linears = sum(_numel(s) for name, s in meta["shapes"].items() if name.startswith(prefix) and len(s) > 1)
    hidden = int(config["hidden_size"])
    per_token = _activations(config, block)
    return linears * (2 * FP32 + per_weight(spec)) + FP32 * (tokens * per_token + 3 * all_tokens * hidden)


def _activations(config: Mapping[str, Any], block: int) -> int:
    """Numbers per token that a backward pass through a block keeps: about 16 hidden vectors and 4 MLP vectors.

    In a mixture the latter are those of the experts that a token goes through, and 2 more hidden vectors of each.
    """
    hidden = int(config["hidden_size"])
    if (found := mixture(config, block)) is None:
        return 16 * hidden + 4 * int(config["intermediate_size"])
    chosen = int(config["num_experts_per_tok"])
    return (16 + 2 * chosen) * hidden + 4 * (chosen * found.inner + (found.shared or 0))


def per_weight(spec: Training) -> int:
    """Bytes per weight of a trained linear, beside the original."""
    variable = 0 if spec.rates.codes is None else FP32 * (2 + 2 * isinstance(spec.optimizer, Adam))
    return 2 * INT16 + 2 * FP32 + variable


def available_bytes(device: str) -> int | None:
    """Memory free for use on the device now; None where the system does not say."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()  # what torch keeps of earlier steps for itself is free for the next
        return torch.cuda.mem_get_info(torch.device(device))[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def check_fits(needed: int, available: int | None, where: str) -> None:
    """InputError that states the bytes needed when they are more than what is available."""
    if available is not None and needed > available:
        raise InputError(
            "training does not fit in memory",
            where=where,
            got=f"{available} bytes available",
            wanted=f"{needed} bytes for the original, the student and one batch",
            fix="lower the node's `batch`, use a larger device, or take `scope: stream`, which holds one block",
        )


def _numel(shape: tuple[int, ...]) -> int:
    return math.prod(shape)
