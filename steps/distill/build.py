"""From spec to part: the one place that knows which function carries out which training spec."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, assert_never

import torch

from schemas.distill import Adam, Annealed, Box, Codes, Offsets, Precision, SignDescent, StraightThrough
from schemas.format import Affine, Ggml, Mixed, PerColumn, read_format
from steps.distill.codes.annealed import annealed
from steps.distill.codes.box import box
from steps.distill.codes.code import Code, Grid
from steps.distill.codes.fixed import fixed
from steps.distill.codes.offsets import offsets
from steps.distill.codes.straight_through import straight_through
from steps.distill.matrices.affine import affine_start
from steps.distill.matrices.ggml import ggml_start
from steps.distill.matrices.matrix import Start
from steps.distill.matrices.mixed import mixed_start
from steps.distill.sign import SignOptimizer
from steps.quantize.tensors.affine import AffineTensor
from steps.quantize.tensors.ggml import GgmlTensor
from steps.quantize.tensors.mixed import MixedTensor
from steps.step import Value

Arithmetic = Callable[[], AbstractContextManager[Any]]
"""Makes what a forward pass runs within."""
BF16_CAPABILITY = (8, 0)


def is_bf16(precision: Precision, device: str) -> bool:
    """Whether the blocks compute in bf16; older GPUs than `BF16_CAPABILITY` only pretend to."""
    if precision == "auto" and torch.device(device).type == "cuda":
        return torch.cuda.get_device_capability(device) >= BF16_CAPABILITY
    return precision == "bf16"


def build_arithmetic(precision: Precision, device: str) -> Arithmetic:
    """Products and attention in bf16 where asked for; sums, norms and the residual stream stay in fp32 (autocast)."""
    wanted = is_bf16(precision, device)
    return partial(torch.autocast, torch.device(device).type, torch.bfloat16, enabled=wanted, cache_enabled=False)


def build_code(spec: Codes | None, grid: Grid) -> Code:
    """The parametrisation of one matrix's codes; None keeps them."""
    match spec:
        case None:
            return fixed(grid)
        case StraightThrough():
            return straight_through(spec, grid)
        case Box():
            return box(spec, grid)
        case Annealed():
            return annealed(spec, grid)
        case Offsets():
            return offsets(spec, grid)
        case _:
            assert_never(spec)


def build_start(item: Value, member: str, device: str, scaled: bool) -> Start:
    """Where the training of one matrix starts, by its family; `scaled`: what scales its codes is trained."""
    fmt = read_format(item.meta["format"])
    match fmt:
        case Affine():
            return affine_start(AffineTensor.from_tensors(item, member, fmt), device, scaled)
        case Ggml():
            return ggml_start(GgmlTensor.from_tensors(item, member, fmt), device, scaled)
        case Mixed() | PerColumn():
            return mixed_start(MixedTensor.from_tensors(item, member, fmt), device, scaled)
        case _:
            assert_never(fmt)


def build_optimizer(spec: Adam | SignDescent, variables: Sequence[torch.Tensor]) -> torch.optim.Optimizer:
    """One parameter group per variable, in order; learning rates are set before every step."""
    groups = [{"params": [variable]} for variable in variables]
    match spec:
        case Adam():
            return torch.optim.Adam(groups, lr=0.0, betas=(spec.beta1, spec.beta2), fused=True)
        case SignDescent():
            return SignOptimizer(groups)
        case _:
            assert_never(spec)
