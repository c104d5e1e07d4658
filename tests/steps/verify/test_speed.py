"""What a speed row says: throughput everywhere, kernels and memory on a GPU alone."""

from __future__ import annotations

import pytest
import torch

from schemas.report import Speed
from steps.step import Output
from steps.verify.bandwidth import sweep
from steps.verify.loaders import load_original
from steps.verify.show import gpu_lines
from steps.verify.speed import measure_speed, original_peak


def test_a_cpu_has_no_rows_of_a_gpu(tiny_model: Output) -> None:
    prompt_S = torch.arange(1, 9)
    assert original_peak(tiny_model, prompt_S, "cpu", 64) is None
    loaded = load_original(tiny_model)
    assert sweep(loaded, "cpu").matrices == 0
    speed = measure_speed(loaded, prompt_S, "cpu", 64)
    assert speed.decode_tokens_per_second > 0 and speed.peak_memory_bytes > 10**7
    assert gpu_lines(speed.model_dump()) == []
    old = {"prefill_tokens_per_second": 1.0, "decode_tokens_per_second": 1.0, "peak_memory_bytes": 1}
    assert gpu_lines(Speed.model_validate(old).model_dump()) == gpu_lines(old) == []


@pytest.mark.parametrize(("fraction", "wanted"), [(0.7, "decoding reads at 70% of that"), (None, "all fit its cache")])
def test_what_people_read_of_a_gpu(fraction: float | None, wanted: str) -> None:
    speed = Speed(
        prefill_tokens_per_second=1,
        decode_tokens_per_second=1,
        peak_memory_bytes=4 * 10**9,
        original_peak_memory_bytes=16 * 10**9,
        kernel_matrices=224,
        copy_bytes_per_second=2e12,
        decode_bandwidth_fraction=fraction,
    )
    said = gpu_lines(speed.model_dump())
    assert said[0] == "peak memory is 0.25 of the original's 16.00 GB"
    assert said[1] == f"kernels serve 224 packed matrices; memory copies at 2,000 GB/s, {wanted}"
