"""Tokens per second and memory of a loaded model. Facts about a machine, not about a model."""

from __future__ import annotations

import gc
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from schemas.report import Speed
from steps.step import Value
from steps.verify.bandwidth import measure_bandwidth
from steps.verify.loaders import load_original

PROMPT, GENERATED, REPEATS = 256, 16, 3
"""Tokens read at once, tokens generated one by one, runs of which the median counts."""


@torch.no_grad()
def measure_speed(
    loaded: Any, prompt_S: torch.Tensor, device: str, limit: int, original_peak_bytes: int | None = None
) -> Speed:
    """Median prefill and greedy decode throughput at batch 1, after one warm-up run; on a GPU also how near decoding
    comes to the speed of memory.

    `prompt_S` is cut so that prompt and generated tokens stay within `limit` positions. `original_peak_bytes` is what
    `original_peak` gave.
    """
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    prompt_1S = prompt_S[: max(1, min(PROMPT, limit - GENERATED))].long()[None].to(device)
    _run(loaded, prompt_1S, device)
    runs = [_run(loaded, prompt_1S, device) for _ in range(REPEATS)]
    prefill, decode = (statistics.median(seconds) for seconds in zip(*runs, strict=True))
    peak_bytes = peak_memory(device)  # before a copy of large buffers
    bandwidth = measure_bandwidth(loaded, device)
    return Speed(
        prefill_tokens_per_second=prompt_1S.shape[1] / prefill,
        decode_tokens_per_second=GENERATED / decode,
        peak_memory_bytes=peak_bytes,
        original_peak_memory_bytes=original_peak_bytes,
        kernel_matrices=bandwidth and bandwidth.matrices,
        copy_bytes_per_second=bandwidth and bandwidth.copy,
        decode_bandwidth_fraction=bandwidth and bandwidth.fraction,
    )


def original_peak(model: Value, prompt_S: torch.Tensor, device: str, limit: int) -> int | None:
    """Peak memory of the original at the work of `measure_speed`, in its stored dtype; call it with the GPU empty.

    None on a CPU, where memory is counted by process, and where the original does not fit the GPU.
    """
    if not device.startswith("cuda"):
        return None
    try:
        return measure_speed(load_original(model).to(device), prompt_S, device, limit).peak_memory_bytes
    except torch.OutOfMemoryError:
        return None
    finally:
        gc.collect()  # a model refers to itself
        torch.cuda.empty_cache()


def peak_memory(device: str) -> int:
    """Most memory held so far: allocated on the GPU when there is one, else resident in this process."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): kilobytes on Linux, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _run(loaded: Any, prompt_1S: torch.Tensor, device: str) -> tuple[float, float]:
    """Seconds of one prefill and of GENERATED greedy steps behind it."""
    held: dict[str, Any] = {}

    def prefill() -> None:
        held["out"] = loaded(input_ids=prompt_1S, use_cache=True, logits_to_keep=1)

    def decode() -> None:
        out = held["out"]
        for _ in range(GENERATED):
            token_11 = out.logits[:, -1:].argmax(-1)
            out = loaded(input_ids=token_11, past_key_values=out.past_key_values, use_cache=True)

    return _seconds(prefill, device), _seconds(decode, device)


def _seconds(call: Callable[[], None], device: str) -> float:
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
