"""Held-out KL of our K-quants beside llama.cpp's own, at the same bytes: same model, text and machine.

    python tests/benchmarks/gguf_peer.py [--model pipelines/demo/model] [--formats q2_k,q3_k,q4_k] [--windows 128]
        [--length 256] [--threads 1]

Every linear in one format. The peer is `ggml_quantize_chunk` of the llama.cpp in llama-cpp-python, with the importance
matrix of the same calibration windows (the mean square of every input, as its `imatrix` program collects) and without.
It must be built before (`python -m steps.verify.llama`). KL is mean KL(original || rounded) in nats per held-out
token, every weight decoded by the `gguf` package from the bytes. Exit code 1 when ours is above 0.9 of the peer's.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from peer_gptq import Weights, calibrate, divergence, load, windows
from safetensors.torch import load_file

from schemas.format import GGML_BLOCKS, GgmlType, read_format
from schemas.quantize import QuantizeUnit, Rounding
from steps.model.structure import units
from steps.quantize import unit as quantize
from steps.quantize.qtensor import from_value
from steps.quantize.tensors.ggml import GgmlTensor
from steps.step import Env, Output
from steps.verify.llama import libraries

GOAL = 0.9
SPLITS = ("calibrate", "evaluate")


class Peer:
    """llama.cpp's quantizer."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(str(libraries() / "libggml-base.so"))
        self._library.ggml_quantize_chunk.restype = ctypes.c_size_t

    def blocks(self, kind: GgmlType, W_OI: torch.Tensor, importance_I: torch.Tensor | None) -> np.ndarray:
        """uint8 [O, bytes of a row]."""
        source = np.ascontiguousarray(W_OI.float().numpy())
        rows, columns = source.shape
        block = GGML_BLOCKS[kind]
        target = np.zeros((rows, columns // block.weights * block.bytes), np.uint8)
        weights = None if importance_I is None else np.ascontiguousarray(importance_I.float().numpy())
        written = self._library.ggml_quantize_chunk(
            ctypes.c_int(gguf.GGMLQuantizationType[kind.upper()].value),
            source.ctypes.data_as(ctypes.c_void_p),
            target.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_int64(0),
            ctypes.c_int64(rows),
            ctypes.c_int64(columns),
            None if weights is None else weights.ctypes.data_as(ctypes.c_void_p),
        )
        assert written == target.nbytes
        return target


def decoded(kind: GgmlType, blocks_OB: np.ndarray) -> torch.Tensor:
    """The weights, by the `gguf` package."""
    return torch.from_numpy(gguf.quants.dequantize(blocks_OB, gguf.GGMLQuantizationType[kind.upper()]).copy())


def theirs(peer: Peer, kind: GgmlType, tensors: Weights, importance: Mapping[str, torch.Tensor] | None) -> Weights:
    """Every linear by llama.cpp's quantizer."""
    names = [n for n in tensors if n.endswith("_proj.weight")]
    given = {n: None if importance is None else importance[n] for n in names}
    return {n: decoded(kind, peer.blocks(kind, tensors[n], given[n])) for n in names}


def ours(kind: GgmlType, rounding: Rounding, found: Any, tensors: Weights) -> Weights:
    """Every linear by the quantize step."""
    config, statistics = found
    env, weights = Env(), {}
    for unit in units(config, {n: tuple(t.shape) for n, t in tensors.items()}):
        model = Output(meta={"unit": unit.model_dump(), "config": config}, tensors=tensors)
        spec = QuantizeUnit(format=read_format(kind), rounding=rounding)
        item = quantize.run(spec, {"model": model, "statistics": statistics[unit.block]}, env)["candidates"]
        for member in unit.members:
            q = from_value(item, member)
            assert isinstance(q, GgmlTensor)
            weights[f"{member}.weight"] = decoded(kind, q.blocks_OB.numpy())
    return weights


def importances(found: Any, tensors: Weights) -> dict[str, torch.Tensor]:
    """Mean square of every linear's inputs, by the weight's name: the Hessian's diagonal is twice that."""
    config, statistics = found
    cut = units(config, {n: tuple(t.shape) for n, t in tensors.items()})
    pairs = [(u.block, m, s) for u in cut for m, s in zip(u.members, u.statistics, strict=True)]
    return {f"{m}.weight": statistics[k].tensors[f"{s}.hessian"].diagonal() / 2 for k, m, s in pairs}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("pipelines/demo/model"))
    parser.add_argument("--formats", default="q2_k,q3_k,q4_k")
    for name, default in (("windows", 128), ("length", 256), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args()


def main() -> int:
    """One table; 0 when the goal is met for every format."""
    args = arguments()
    torch.set_num_threads(args.threads)
    config = json.loads((args.model / "config.json").read_text())
    stored = {n: t for path in sorted(args.model.glob("*.safetensors")) for n, t in load_file(path).items()}
    tensors = {n: t.float() for n, t in stored.items()}
    ids = {s: windows(args.model, s, args.windows, args.length, config["vocab_size"]) for s in SPLITS}
    load(args.model)
    found, peer = (config, calibrate(config, tensors, ids["calibrate"])), Peer()
    importance, met = importances(found, tensors), True
    print(f"{len(ids['evaluate'])} held-out windows of {args.length} tokens; mean KL, all linears in one type")
    print("type   bits per weight   llama.cpp   with imatrix   ours, no refit   ours   ratio")
    for kind in args.formats.split(","):
        contestants = [theirs(peer, kind, tensors, None), theirs(peer, kind, tensors, importance)]
        contestants += [ours(kind, Rounding(refits=n), found, tensors) for n in (0, Rounding().refits)]
        kl = [divergence(args.model, weights, ids["evaluate"]) for weights in contestants]
        block, ratio = GGML_BLOCKS[kind], kl[3] / min(kl[:2])
        met &= ratio <= GOAL
        row = f"{kl[0]:9.5f}   {kl[1]:12.5f}   {kl[2]:14.5f}   {kl[3]:.5f}   {ratio:.2f}"
        print(f"{kind:6} {8 * block.bytes / block.weights:15.4f}   {row}", flush=True)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
