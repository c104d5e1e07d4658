"""Peak memory of every step of a whole build, with the process's memory limited to less than the model's size.

    python tests/benchmarks/memory_build.py --limit-mib 2048 --folder FOLDER     # 3.3 GB of bf16, takes 12 GB of disk
    python tests/benchmarks/memory_build.py --hidden 512 --inner 1408 --blocks 64 --limit-mib 250 --load blocks

FOLDER is kept, so that the same command goes on where an interrupted one stopped; without it all is temporary.

A random Llama is written shard by shard, then built by rounding to two formats, scored by fisher, its codes chosen
again in `--passes` passes (0: not at all), on few tokens, and verified as `--load` says. The limit is on private
writable memory (RLIMIT_DATA: heap and anonymous mappings, what a process cannot give back) beyond what torch and
transformers take once imported, 0.4 GiB. Each step's peak resident set is read after resetting the kernel's mark. The
last line is what `plan` says that the build will take.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import resource
import shutil
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

MIB = 2**20


@dataclass(frozen=True)
class Shape:
    """Of the synthetic Llama."""

    hidden: int = 2048
    inner: int = 5632
    blocks: int = 32

    def config(self) -> dict[str, object]:
        from models import tiny_config

        heads = {"num_attention_heads": self.hidden // 128, "num_key_value_heads": self.hidden // 128, "head_dim": 128}
        sizes = {"hidden_size": self.hidden, "intermediate_size": self.inner, "num_hidden_layers": self.blocks}
        return tiny_config(**heads, **sizes, vocab_size=300, tied=True, dtype="bfloat16")


def write_shards(folder: Path, shape: Shape) -> None:
    """A random bf16 checkpoint, one shard per block and one for the rest, one resident at a time."""
    import torch
    from models import write_tokenizer
    from safetensors.torch import save_file

    from schemas.structure import expected_shapes

    folder.mkdir(parents=True)
    config = shape.config()
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder, 300)
    shards: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, size in expected_shapes(config, "synthetic").items():
        part = name.split(".")[2] if name.startswith("model.layers.") else "rest"
        shards.setdefault(f"model-{part}.safetensors", {})[name] = size
    generator = torch.Generator().manual_seed(0)

    def tensor(size: tuple[int, ...]) -> torch.Tensor:
        if len(size) == 1:
            return torch.ones(size, dtype=torch.bfloat16)
        return (torch.randn(size, generator=generator) / math.sqrt(size[-1])).bfloat16()

    for file, sizes in shards.items():
        save_file({name: tensor(size) for name, size in sizes.items()}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, sizes in shards.items() for name in sizes}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def status_mib(field: str) -> float:
    """A field of /proc/self/status."""
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024


def reset_peak() -> None:
    """Let the peak resident set start again from what is resident now (proc(5), clear_refs)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")


def limit(mib: int | None) -> None:
    """Limit private writable memory, or lift the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard if mib is None else mib * MIB, hard))


def build(
    folder: Path, limit_mib: int | None, load: str, kept: Sequence[int], passes: int
) -> tuple[dict[str, float], float]:
    """Build the model in `folder`; peak resident MiB by node, with `start`, what was resident before; and foretold."""
    import compressed_tensors.compressors  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401
    from builds import open_build

    from pipelines.drive import Outputs, drive
    from pipelines.preflight import check

    keep = [f"layers.{block}.*" for block in kept]
    text = {name: str(folder / f"{name}.jsonl") for name in ("calibrate", "evaluate")}
    windows = {f"{name}_windows": 4 for name in ("calibrate", "score", "evaluate")}
    recode = {"method": "recode", "recode": {"passes": passes, "windows": 6}, "held_out": 6}
    opened = open_build(
        folder, formats=["int4-g128", "int8-g128"], method="rtn", sensitivity="fisher", batch=2,
        distill=recode if passes else None,
        budget={"bits_per_weight": 6.0}, text={**text, **windows, "length": 32}, samples=1, load=load, keep=keep,
    )  # fmt: skip
    runner, written = opened.runner, folder / "peaks.json"
    threading.stack_size(MIB)  # a stack counts whole, used or not
    reset_peak()
    before: dict[str, float] = json.loads(written.read_text()) if written.exists() else {}
    peaks = before | {"start": max(status_mib("VmHWM"), before.get("start", 0.0))}
    limit_mib = None if limit_mib is None else int(status_mib("VmData")) + limit_mib

    def execute(node: str, outputs: Outputs, labels: Sequence[str]) -> int:
        reset_peak()
        limit(limit_mib)
        try:
            return runner.execute(node, outputs, labels)
        finally:
            limit(None)
            peaks[node] = max(status_mib("VmHWM"), peaks.get(node, 0.0))
            written.write_text(json.dumps(peaks))

    drive(runner, execute)
    return peaks, check(opened).memory_needed / MIB


def measure(
    folder: Path, shape: Shape, limit_mib: int | None, load: str, quantized: int, passes: int
) -> tuple[float, dict[str, float], float]:
    """MiB of the model, peaks of its build, and what was foretold. To be run in a process of its own."""
    from builds import write_text

    if not (folder / "evaluate.jsonl").exists():
        shutil.rmtree(folder / "model", ignore_errors=True)
        write_shards(folder / "model", shape)
        write_text(folder / "calibrate.jsonl", 60, 1)
        write_text(folder / "evaluate.jsonl", 8, 2)
    size = sum(shard.stat().st_size for shard in (folder / "model").glob("*.safetensors"))
    return size / MIB, *build(folder, limit_mib, load, range(quantized, shape.blocks), passes)


def main() -> None:
    """Print one line per step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("hidden", Shape.hidden), ("inner", Shape.inner), ("blocks", Shape.blocks)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--limit-mib", type=int)
    parser.add_argument("--quantized", type=int, help="only so many blocks, which saves time (all)")
    parser.add_argument("--passes", type=int, default=1, help="of choosing codes again (%(default)s)")
    parser.add_argument("--load", choices=("auto", "whole", "blocks"), default="auto", help="how the file is verified")
    parser.add_argument("--folder", type=Path, help="where there is room, and what is there is used again")
    options = parser.parse_args()
    with nullcontext(options.folder) if options.folder else tempfile.TemporaryDirectory() as folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        shape = Shape(options.hidden, options.inner, options.blocks)
        quantized = shape.blocks if options.quantized is None else options.quantized
        size, peaks, foretold = measure(Path(folder), shape, options.limit_mib, options.load, quantized, options.passes)
    print(f"model {size:,.0f} MiB, limit {options.limit_mib or 'none'}")
    for node, peak in peaks.items():
        print(f"{node:24} {peak:8,.0f} MiB, {peak - peaks['start']:+8,.0f}")
    print(f"foretold {foretold:,.0f} MiB")


if __name__ == "__main__":
    main()
