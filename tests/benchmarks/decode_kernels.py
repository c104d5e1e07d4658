"""How fast the kernels of our container are on this GPU, against fp16 and against its memory: torch and triton alone.

    PYTHONPATH=.:tests/support python tests/benchmarks/decode_kernels.py [--tokens 1] [--json FILE]

For every width and the two shapes of the goal: error against dequantize and multiply, microseconds of the kernel and of
a dense fp16 product, their ratio, and how much of the bandwidth of a large copy the packed bytes reach. Each is
launched as one CUDA graph over so many copies of the matrix that they are read from memory and not from a cache.
Goals for one token: 3 times fp16 at 4 bits, 4 times at 2 and 3, 70 % of the bandwidth. Exit code 1: an error of 2e-3 or
more.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from kernel_cases import packed_case, relative_error
from torch.nn import functional as F

from steps.pack.kernels.matmul import MOST_TOKENS, matmul
from steps.pack.kernels.matvec import matvec
from steps.pack.kernels.packed import BITS, Packed
from steps.verify.graph import beyond_cache, graph, seconds

SHAPES, GROUP = ((4096, 4096), (4096, 14336)), 64
REPEATS, SAMPLES, COPIED, ERROR = 20, 15, 1 << 30, 2e-3
DEVICE = "cuda"


def median_seconds(call: Callable[[], object]) -> float:
    return statistics.median(seconds(call, DEVICE, REPEATS) for _ in range(SAMPLES))


def each(call: Callable[[Any], object], matrices: list[Any]) -> float:
    """Seconds for one of the matrices, which together are beyond the cache."""
    return median_seconds(graph(lambda: [call(matrix) for matrix in matrices], DEVICE)) / len(matrices)


def copies(packed: Packed) -> list[Packed]:
    def another() -> Packed:
        zero_OG = None if packed.zero_OG is None else packed.zero_OG.clone()
        return dataclasses.replace(
            packed, codes_OW=packed.codes_OW.clone(), scale_OG=packed.scale_OG.clone(), zero_OG=zero_OG
        )

    return [another() for _ in range(beyond_cache(DEVICE) // packed.nbytes() + 1)]


def copy_bandwidth() -> float:
    """Bytes per second, read and written."""
    source, target = (torch.empty(COPIED, dtype=torch.uint8, device=DEVICE) for _ in range(2))
    return 2 * COPIED / median_seconds(lambda: target.copy_(source))


@torch.no_grad()
def measure(shape: tuple[int, int], tokens: int, bandwidth: float) -> list[dict[str, Any]]:
    x_MI = torch.randn(tokens, shape[1], device=DEVICE, dtype=torch.float16)
    dense_bytes = 2 * shape[0] * shape[1]
    dense = [torch.randn(shape, device=DEVICE).half() for _ in range(beyond_cache(DEVICE) // dense_bytes + 1)]
    plain = each(lambda W_OI: F.linear(x_MI, W_OI), dense)
    rows = [{"shape": shape, "bits": 16, "us": 1e6 * plain, "ratio": 1.0, "fraction": dense_bytes / plain / bandwidth}]
    for bits in BITS:
        exact_OI, packed = packed_case(bits, shape, GROUP, True, torch.float16, DEVICE)
        run = (lambda p: matvec(p, x_MI[0])) if tokens == 1 else (lambda p: matmul(p, x_MI))
        error = relative_error(run(packed), (x_MI.double() @ exact_OI.double().T).squeeze(0))
        took = each(run, copies(packed))
        found = {"us": 1e6 * took, "ratio": plain / took, "fraction": packed.nbytes() / took / bandwidth}
        rows.append({"shape": shape, "bits": bits, **found, "error": error})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1, help=f"1 to {MOST_TOKENS} (1)")
    parser.add_argument("--json", help="write the rows there, too")
    options = parser.parse_args()
    if not 1 <= options.tokens <= MOST_TOKENS:
        parser.error(f"--tokens is {options.tokens}, wanted 1 to {MOST_TOKENS}")
    if not torch.cuda.is_available():
        parser.error(
            "no GPU: this measures CUDA kernels; their results are tested without one (tests/steps/pack/kernels)"
        )
    bandwidth, device = copy_bandwidth(), torch.cuda.get_device_name()
    print(f"{device}: copies at {bandwidth / 1e9:,.0f} GB/s; groups of {GROUP}, {options.tokens} token(s) at once")
    rows = [row for shape in SHAPES for row in measure(shape, options.tokens, bandwidth)]
    print("shape        bits         us   of fp16   of bandwidth   error")
    for row in rows:
        outputs, inputs = row["shape"]
        error = f"{row['error']:.1e}" if "error" in row else ""
        against = f"{row['ratio']:>8.2f}x {row['fraction']:>13.0%}"
        print(f"{outputs}x{inputs:<7} {row['bits']:>4} {row['us']:>10.2f} {against}   {error}")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"device": device, "bandwidth": bandwidth, "rows": rows}, file, indent=1)
    return int(any(row.get("error", 0.0) >= ERROR for row in rows))


if __name__ == "__main__":
    sys.exit(main())
