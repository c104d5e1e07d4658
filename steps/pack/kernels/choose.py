"""Whether kernels serve a packed matrix, and which: by device, dtype, format, and number of tokens. Triton is optional.

O outputs, I inputs, S positions of any shape, M tokens.
"""

from __future__ import annotations

import os
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch.nn import functional as F

from schemas.format import Affine, Format
from steps.pack.kernels.packed import ALIGNED, BITS, Packed

HALF = (torch.float16, torch.bfloat16)
LEAST_CAPABILITY = (8, 0)
"""Older GPUs have no bf16 products."""


def serves(fmt: Format, shape: tuple[int, int], x_SI: torch.Tensor) -> bool:
    """Whether `product` takes this input: affine codes, rows of whole words, inference, and a device for kernels."""
    affine = isinstance(fmt, Affine) and fmt.bits in BITS and shape[1] % ALIGNED == 0
    training = torch.is_grad_enabled() and x_SI.requires_grad
    return affine and not training and x_SI.is_floating_point() and runs_on(x_SI.device)


def runs_on(device: torch.device) -> bool:
    """Whether Triton is installed and has a GPU it can compile for, or is told to interpret on the CPU."""
    if not _triton():
        return False
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY
    return os.environ.get("TRITON_INTERPRET") == "1"


@lru_cache(maxsize=1)
def _triton() -> bool:
    return find_spec("triton") is not None


def product(packed: Packed, x_SI: torch.Tensor) -> torch.Tensor:
    """x W^T in the dtype of x: matvec for one token, matmul for a small batch, else a dense matrix made for the call.

    fp16 and bf16 are multiplied packed; any other dtype gets the exact matrix, rounded once, and the library's product.
    """
    from steps.pack.kernels.dense import dense
    from steps.pack.kernels.matmul import MOST_TOKENS, matmul
    from steps.pack.kernels.matvec import matvec

    x_MI = x_SI.reshape(-1, packed.columns)
    most = MOST_TOKENS if x_SI.is_cuda or x_SI.dtype == torch.float16 else 1  # the interpreter's dot misreads bf16
    with torch.cuda.device_of(x_SI):  # type: ignore[no-untyped-call]
        if x_SI.dtype not in HALF or not 0 < len(x_MI) <= most:
            return F.linear(x_SI, dense(packed, x_SI.dtype))
        y_MO = matvec(packed, x_MI[0])[None] if len(x_MI) == 1 else matmul(packed, x_MI)
    return y_MO.view(*x_SI.shape[:-1], -1)
