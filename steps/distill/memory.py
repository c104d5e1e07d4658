"""Will training fit? An estimate in bytes from shapes alone, and what the machine has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from schemas.errors import InputError

FP32 = 4


def training_bytes(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], tokens: int) -> int:
    """Memory that training on batches of `tokens` tokens takes at least, in bytes.

    The original's weights in fp32, the student's dequantized weights with their gradients in fp32 and its codes in
    int16 (10 bytes per weight), and per token the activations a backward pass keeps: about 16 hidden vectors and 4 MLP
    vectors per block, and 4 rows of logits.
    """
    weights = sum(_numel(shape) for shape in shapes.values())
    linears = sum(
        _numel(shape) for name, shape in shapes.items() if name.startswith("model.layers.") and len(shape) == 2
    )
    per_block = 16 * int(config["hidden_size"]) + 4 * int(config["intermediate_size"])
    per_token = int(config["num_hidden_layers"]) * per_block + 4 * int(config["vocab_size"])
    return FP32 * weights + (2 * FP32 + 2) * linears + FP32 * tokens * per_token


def available_bytes(device: str) -> int | None:
    """Memory free for use on the device now; None where the system does not say."""
    if torch.device(device).type == "cuda":
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
            fix="lower the distill node's `batch`, use a larger device, or leave the distill node out",
        )


def _numel(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
