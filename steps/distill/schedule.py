"""Which windows are trained on when, for how many steps, and at what share of the learning rate.

N windows.
"""

from __future__ import annotations

import math

from schemas.distill import LEAST_HELD_OUT, Schedule, Training

LARGEST_SHARE = 5
"""At most one window in so many is held out, where that leaves as many as can decide."""
LEAST_WINDOWS = LEAST_HELD_OUT + 1
"""Of a text to train on and to hold out of."""


def held_out_of(windows: int, asked: int) -> int:
    """How many of a text's windows, of which there are LEAST_WINDOWS or more, are held out."""
    return min(asked, max(windows // LARGEST_SHARE, LEAST_HELD_OUT))


def split(windows: int, held_out: int, seed: int) -> tuple[list[int], list[int]]:
    """(training windows in seeded order, held-out windows in file order)."""
    import torch

    order = torch.randperm(windows, generator=torch.Generator().manual_seed(seed)).tolist()
    kept = held_out_of(windows, held_out)
    return order[kept:], sorted(order[:kept])


def steps_of(spec: Training, length: int) -> int:
    """Steps that use up the token budget in windows of `length` tokens; at least one."""
    return max(spec.tokens // (spec.batch * length), 1)


def windows_of(step: int, batch: int, windows: list[int]) -> list[int]:
    """The windows of step 1 and on: each is used once before any is used again."""
    size = min(batch, len(windows))
    return [windows[((step - 1) * size + i) % len(windows)] for i in range(size)]


def share(step: int, steps: int, schedule: Schedule) -> float:
    """Of the peak learning rate, at step 1 to `steps`: a linear rise, then the shape, which ends just above 0."""
    warmup = int(schedule.warmup * steps)
    if step <= warmup:
        return step / (warmup + 1)
    done = (step - 1 - warmup) / max(steps - warmup, 1)
    match schedule.shape:
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        case "linear":
            return 1 - done
        case "constant":
            return 1.0
