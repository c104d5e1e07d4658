"""How fast matrices are packed and read back, on one core, in MB/s of the original's bf16 weights.

    python tests/benchmarks/packing.py [--rows 4096] [--columns 4096]

What the pack step does with one matrix is timed: codes out of the stored artifact, file tensors, sha256, writing.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch

from schemas.format import Affine, read_format
from schemas.pack import PackFormat
from steps.pack import compressed_tensors, container
from steps.pack.safetensors_writer import SafetensorsWriter
from steps.pack.sizes import FILE_METADATA, linear_entries
from steps.quantize.qtensor import from_value, item_meta
from steps.quantize.tensors.affine import AffineTensor
from steps.step import Output

REPEATS = 5
FORMATS = ("int2-g64", "int3-g64", "int4-g128", "int4-g128-asym", "int5-g128", "int6-g128", "int8-g128")
FILES: tuple[PackFormat, ...] = ("compressed-tensors", "bitsmith")
ENCODE = {"compressed-tensors": compressed_tensors.encode, "bitsmith": container.encode}


def item(name: str, form: Affine, shape: tuple[int, int]) -> Output:
    """A stored candidate with random codes."""
    low = 0 if form.symmetry == "asymmetric" else -(1 << (form.bits - 1))
    generator = torch.Generator().manual_seed(0)
    codes_OI = torch.randint(low, low + (1 << form.bits), shape, generator=generator, dtype=torch.int16)
    scale_OG = torch.rand(shape[0], shape[1] // form.columns(shape[1]), generator=generator).bfloat16()
    zero_OG = None if low else torch.zeros(scale_OG.shape, dtype=torch.uint8)
    q = AffineTensor(name, form, codes_OI.to(torch.uint8 if low == 0 else torch.int8), scale_OG, zero_OG)
    return Output(item_meta(name, form, {name: {"shape": list(shape)}}), q.to_tensors())


def pack(value: Output, name: str, form: Affine, shape: tuple[int, int], pack: PackFormat, folder: Path) -> None:
    """One matrix from the store's form to a file."""
    path = folder / f"{time.monotonic_ns()}.safetensors"
    with SafetensorsWriter(path, linear_entries(pack, name, form, shape), FILE_METADATA) as writer:
        for full, tensor in ENCODE[pack](from_value(value, name)).items():
            writer.write(full, tensor)
    path.unlink()


def read(value: Output, name: str, form: Affine, shape: tuple[int, int], pack: PackFormat) -> Callable[[], object]:
    """Reading the same matrix back, with every check."""
    tensors = dict(ENCODE[pack](from_value(value, name)))
    if pack == "bitsmith":
        return lambda: container.check(name, form, shape, tensors)
    return lambda: compressed_tensors.from_file_tensors(name, form, tensors)


def rate(call: Callable[[], object], megabytes: float) -> float:
    """MB per second of processor time of the fastest of several runs: what a core does that has nothing else to do."""
    best = float("inf")
    for _ in range(REPEATS):
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
    return megabytes / best


def main() -> None:
    """Print one row per format."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rows", type=int, default=4096)
    options.add_argument("--columns", type=int, default=4096)
    asked = options.parse_args()
    torch.set_num_threads(1)
    shape, name = (asked.rows, asked.columns), "m"
    megabytes = 2 * asked.rows * asked.columns / 1e6
    size = f"{shape[0]} x {shape[1]}, {megabytes:.1f} MB of bf16"
    print(f"{size}; MB per second of processor time, one thread, best of {REPEATS}\n")
    print(
        f"{'format':16}{'compressed-tensors':>30}{'bitsmith':>20}\n{'':16}{'pack':>20}{'read':>10}{'pack':>10}{'read':>10}"
    )
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        for short in FORMATS:
            form = read_format(short)
            assert isinstance(form, Affine)
            value = item(name, form, shape)
            cells = ""
            for file_format in FILES:
                write = partial(pack, value, name, form, shape, file_format, Path(folder))
                cells += f"{rate(write, megabytes):10.0f}"
                cells += f"{rate(read(value, name, form, shape, file_format), megabytes):10.0f}"
            print(f"{short:26}{cells}")


if __name__ == "__main__":
    main()
