"""Which device computes, and that it adds in one order."""

from __future__ import annotations

import os

from schemas.errors import InputError

CUBLAS_WORKSPACES = ":4096:8"
"""Fixed workspaces, with which cuBLAS promises one order of sums; it reads the environment at its first product."""


def device_of(asked: str) -> str:
    """`auto` is cuda when there is one; InputError for a cuda that is not there.

    On a GPU sums by atomic adds, attention's backward pass among them, come in another order every time, and a killed
    training would not go on to the same bytes. So torch takes its deterministic kernels there, and raises where it has
    none; no step has such an operation.
    """
    if asked == "cpu":
        return asked
    import torch

    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACES)
        torch.use_deterministic_algorithms(True)
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False  # sums stay in fp32
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # no step reads it
        return "cuda"
    if asked == "cuda":
        raise InputError("no CUDA device", where="--device", got=asked, wanted="cpu or auto", fix="use --device auto")
    return "cpu"
