"""Peak memory of the reference step against the number of blocks: it must not grow with it.

    python tests/benchmarks/memory.py

Each model runs in a process of its own; its weights exist only while they are read. Measured with blocks of 52 MiB in
fp32 on one thread, MiB by which the peak exceeds the peak of one block: 4 blocks 36, 8 blocks 19, 16 blocks 60, 40
blocks 46 (of 2,080 in all). With MALLOC_MMAP_THRESHOLD_=131072, 16 blocks 9: the rest is fragmentation of the C heap.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from models import tiny_config, tiny_tokens

from schemas.calibrate import Reference
from steps.calibrate.reference import run
from steps.model.stream import Stream
from steps.step import Env, Output

WIDTH, INNER = 1024, 3072
PER_BLOCK = {
    **{f"self_attn.{p}_proj.weight": (WIDTH, WIDTH) for p in "qkvo"},
    **{f"mlp.{p}_proj.weight": (INNER, WIDTH) for p in ("gate", "up")},
    "mlp.down_proj.weight": (WIDTH, INNER),
    **{f"{n}_layernorm.weight": (WIDTH,) for n in ("input", "post_attention")},
}


class Made(Mapping[str, torch.Tensor]):
    """bf16 weights made when asked for."""

    def __init__(self, blocks: int) -> None:
        self._shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (256, WIDTH),
            "model.norm.weight": (WIDTH,),
        }
        self._shapes |= {f"model.layers.{k}.{n}": s for k in range(blocks) for n, s in PER_BLOCK.items()}

    def __getitem__(self, name: str) -> torch.Tensor:
        return torch.full(self._shapes[name], 1e-3, dtype=torch.bfloat16)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def peak_mib() -> float:
    """Largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def growth_mib(blocks: int) -> float:
    """By how much the reference step's peak exceeds that of one loaded and run block."""
    torch.set_num_threads(1)
    config = tiny_config(
        hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=blocks, num_attention_heads=8,
        num_key_value_heads=8, head_dim=128, vocab_size=256, tied=True,
    )  # fmt: skip
    model, tokens = Output({"config": config, "name": "made"}, Made(blocks)), tiny_tokens(2, 16)
    stream = Stream(model)
    with torch.no_grad():
        stream.run(stream.block(0), stream.embed(tokens.tensors["ids_NS"]))
    before = peak_mib()
    run(Reference(step="reference"), {"model": model, "tokens": tokens}, Env())
    return peak_mib() - before


if __name__ == "__main__":
    for count in (4, 16):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(f"{count:3} blocks: {pool.apply(growth_mib, (count,)):6.1f} MiB over one block")
