"""How near decoding comes to the speed of memory: bytes of packed matrices over the time their kernels take for one
token, over what a plain copy reaches on the same device."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from steps.pack.kernels.choose import HALF, serves
from steps.pack.modules import PackedLinear
from steps.verify.graph import beyond_cache, graph, seconds

COPIED, REPEATS, SAMPLES = 1 << 30, 5, 7


@dataclass(frozen=True)
class Sweep:
    """One token through every linear that a kernel serves, one after the other, as decoding does it."""

    matrices: int
    nbytes: int
    """Of codes, scales and zero points: what every token reads."""
    run: Callable[[], None]


@dataclass(frozen=True)
class Bandwidth:
    """`copy` in bytes per second, read and written; the sweep reads at `fraction` of it, None where it fits a cache."""

    matrices: int
    copy: float
    fraction: float | None


def sweep(loaded: Any, device: str) -> Sweep:
    """Over the packed linears of a model in fp16 or bf16; of none in another dtype."""
    x = {m.in_features: _token(m, loaded.dtype, device) for m in _linears(loaded)}
    served = [m for m in _linears(loaded) if loaded.dtype in HALF and serves(m.format, m.shape, x[m.in_features])]

    def run() -> None:
        for m in served:
            m.times(x[m.in_features])

    return Sweep(len(served), sum(t.nbytes for m in served for t in m.stored().values()), run)


@torch.no_grad()
def measure_bandwidth(loaded: Any, device: str) -> Bandwidth | None:
    """None on a CPU, and where no kernel serves the model."""
    if not device.startswith("cuda"):
        return None
    found = sweep(loaded, device)
    if found.matrices == 0:
        return None
    copy = copy_bandwidth(device)
    if found.nbytes < beyond_cache(device):
        return Bandwidth(found.matrices, copy, None)
    replay = graph(found.run, device)
    took = statistics.median(seconds(replay, device, REPEATS) for _ in range(SAMPLES))
    return Bandwidth(found.matrices, copy, found.nbytes / took / copy)


def copy_bandwidth(device: str) -> float:
    """Bytes per second that copying a large buffer reads and writes, at its median."""
    size = min(COPIED, torch.cuda.mem_get_info(device)[0] // 4)
    source, target = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))
    target.copy_(source)
    return 2 * size / statistics.median(seconds(lambda: target.copy_(source), device, REPEATS) for _ in range(SAMPLES))


def _linears(loaded: Any) -> list[PackedLinear]:
    return [m for m in loaded.modules() if isinstance(m, PackedLinear)]


def _token(linear: PackedLinear, dtype: torch.dtype, device: str) -> torch.Tensor:
    return torch.ones(1, linear.in_features, dtype=dtype, device=device)
