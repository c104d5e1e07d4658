"""Work of a GPU launched as one CUDA graph, so that what is timed is the GPU and not the interpreter that feeds it."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

CACHES = 4
"""Weights that are read in turn must be so many times the GPU's cache together, or it answers for the memory."""


def graph(call: Callable[[], object], device: str) -> Callable[[], None]:
    """What replays `call`, which is first run once by itself: kernels are compiled and libraries set up by then.

    It keeps `call`, as a graph knows only the addresses of what it reads.
    """
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call()
        torch.cuda.current_stream().wait_stream(stream)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            call()

    def replay(alive: Callable[[], object] = call) -> None:
        captured.replay()

    return replay


def seconds(call: Callable[[], object], device: str, repeats: int) -> float:
    """Mean time of one call, the device's queue included."""
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / repeats


def beyond_cache(device: str) -> int:
    """Bytes that no cache of the device holds."""
    return CACHES * int(torch.cuda.get_device_properties(device).L2_cache_size)
