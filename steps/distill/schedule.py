"""When each window is trained on, and with which learning rate.

N windows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch


def split(windows: int, held_out: float, seed: int) -> tuple[list[int], list[int]]:
    """(training windows in seeded order, held-out windows in file order), neither empty if there are 2 or more."""
    order = torch.randperm(windows, generator=torch.Generator().manual_seed(seed)).tolist()
    kept = min(max(round(held_out * windows), 1), windows - 1)
    return order[kept:], sorted(order[:kept])


def training_batches(windows: list[int], batch: int, steps: int) -> Iterator[list[int]]:
    """`steps` batches; every window is used once before any is used again."""
    size = min(batch, len(windows))
    for step in range(steps):
        yield [windows[(step * size + i) % len(windows)] for i in range(size)]


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Of step 1 to `steps`: linear over `warmup` steps, then a cosine that reaches 0 just after the last step."""
    if step <= warmup:
        return peak * step / (warmup + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - 1 - warmup) / max(steps - warmup, 1)))
