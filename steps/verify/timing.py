"""Time of one linear in a format, in the module that serves it: the one that loading a packed folder puts in place.

What that module does is its own affair: dequantize and multiply, or a kernel where it has one for the device.
O outputs, I inputs, S tokens.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import assert_never

import torch
from torch import nn

from schemas.artifact import Unit
from schemas.errors import InputError
from schemas.format import Format
from schemas.pack import PackFormat
from schemas.quantize import MinMax, Nearest, QuantizeUnit, Rounding
from steps.pack.container import encode
from steps.pack.kernels.choose import serves
from steps.pack.modules import PackedLinear
from steps.pack.sizes import scale_dtype_name
from steps.quantize.qtensor import from_value
from steps.quantize.unit import run as quantize
from steps.step import Env, Output
from steps.verify.graph import beyond_cache, graph

ROWS = 32
"""Rows that are really quantized; the others are copies, which take as long."""
LEAST_SAMPLES, SAMPLE_SECONDS = 7, 1e-3
MOST_COPIES = 128
"""Linears so small that these fit a GPU's cache would be served from it in a model, too."""


@dataclass(frozen=True)
class Timed:
    """Median of the samples in microseconds, half the span of their middle half over it, and their number."""

    microseconds: float
    noise: float
    samples: int


def serving_linear(pack: PackFormat, fmt: Format, shape: tuple[int, int], dtype: torch.dtype, device: str) -> nn.Module:
    """The module that a loaded folder computes with, holding made-up weights.

    compressed-tensors unpacks on loading: its linears are dense, whatever their format was.
    """
    rows, columns = shape
    match pack:
        case "compressed-tensors":
            dense: nn.Module = nn.Linear(columns, rows, bias=False, dtype=dtype, device=device)
            return dense
        case "bitsmith":
            linear = PackedLinear("m", fmt, shape, scale_dtype_name({"dtype": str(dtype)}), None)
            linear.load_state_dict(_stored(fmt, shape, dtype))
            return linear.to(device)
        case "gguf":
            raise InputError(
                "linears in GGUF are not timed here",
                where="latency",
                got=pack,
                wanted="bitsmith, or compressed-tensors",
                fix="llama.cpp serves this file: measure there, and give the times as budget.latency.timings",
            )
        case _:
            assert_never(pack)


def _stored(fmt: Format, shape: tuple[int, int], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors of a matrix, by part: a few rows rounded to nearest, again and again."""
    rows, columns = min(ROWS, shape[0]), shape[1]
    W_OI = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    unit = Unit(name="m", block=0, members=("m",), shapes=((rows, columns),), statistics=("m",))
    model = Output({"unit": unit.model_dump(), "config": {"dtype": str(dtype)}}, {"m.weight": W_OI})
    spec = QuantizeUnit(format=fmt, rounding=Rounding(fit=MinMax(kind="minmax"), solver=Nearest(kind="rtn")))
    item = quantize(spec, {"model": model, "statistics": Output(tensors={"m.hessian": torch.eye(columns)})}, Env())
    some = encode(from_value(item["candidates"], "m"))
    times = -(-shape[0] // rows)
    parts = {name.removeprefix("m."): part for name, part in some.items()}
    return {name: part if name == "widths" else torch.cat([part] * times)[: shape[0]] for name, part in parts.items()}


@torch.no_grad()
def time_linear(linear: nn.Module, inputs: int, tokens: int, dtype: torch.dtype, device: str, seconds: float) -> Timed:
    """Median time of a forward pass; samples of at least a millisecond until `seconds` have passed.

    On a GPU kernels are timed as engines launch them, in one CUDA graph, over so many copies of the linear that its
    weights come from memory and not from a cache.
    """
    x_SI = torch.randn(tokens, inputs, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    forward, each = _forward(linear, x_SI, device)
    call = _repeated(forward, device)
    call(1)
    calls = max(1, round(SAMPLE_SECONDS / max(call(1), 1e-9)))
    samples, stop = list[float](), time.perf_counter() + seconds
    while len(samples) < LEAST_SAMPLES or time.perf_counter() < stop:
        samples.append(call(calls) / calls / each)
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Timed(1e6 * middle, (high - low) / 2 / middle, len(samples))


def _forward(linear: nn.Module, x_SI: torch.Tensor, device: str) -> tuple[Callable[[], object], int]:
    """What is called, and how many forward passes it makes."""
    captured = not isinstance(linear, PackedLinear) or serves(linear.format, linear.shape, x_SI)
    if not (device.startswith("cuda") and captured):
        return lambda: linear(x_SI), 1
    size = sum(t.nbytes for t in linear.state_dict().values())
    copies = [linear, *(copy.deepcopy(linear) for _ in range(min(MOST_COPIES, beyond_cache(device) // size)))]
    return graph(lambda: [each(x_SI) for each in copies], device), len(copies)


def _repeated(call: Callable[[], object], device: str) -> Callable[[int], float]:
    """Seconds that so many calls take, the device's queue included."""

    def wait() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)

    def run(calls: int) -> float:
        wait()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        wait()
        return time.perf_counter() - start

    return run
