"""Held-out KL of our K-quants beside llama.cpp's own, at the same bytes: same model, text and machine.

    python tests/benchmarks/gguf_peer.py [--model pipelines/demo/model] [--formats q2_k,q3_k,q4_k] [--windows 64]
        [--evaluation 64] [--length 256] [--threads 1] [--env ~/.cache/bitsmith/llama]

Every linear in one format. The peer is `ggml_quantize_chunk` of the llama.cpp in llama-cpp-python, with the importance
matrix of the same calibration windows (the mean square of every input, as its `imatrix` program collects) and without.
It is installed from source into an environment of its own on the first run, which takes about 15 minutes. KL is
mean KL(original || rounded) in nats per held-out token, with every weight decoded by the `gguf` package from the bytes.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from peer_gptq import Weights, calibrate, divergence, load, windows
from safetensors.torch import load_file

from schemas.artifact import Unit
from schemas.format import GGML_BLOCKS, GgmlType, read_format
from schemas.quantize import QuantizeUnit, Rounding
from steps.model.structure import units
from steps.quantize import unit as quantize
from steps.step import Env, Output
from steps.verify.llama import environment, libraries


class Peer:
    """llama.cpp's quantizer."""

    def __init__(self, folder: Path) -> None:
        self._library = ctypes.CDLL(str(libraries(environment(folder)) / "libggml-base.so"))
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
