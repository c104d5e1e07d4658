"""Linears with correlated inputs, one spec of every kind in a schema union, and slow forms of the solver as oracles."""

from __future__ import annotations

from typing import Any, TypeVar, get_args

import torch

from schemas.artifact import Unit
from schemas.base import Spec
from schemas.format import Affine, Bits, GroupSize, Symmetry
from steps.quantize.grids.affine import GridParams, decode, nearest
from steps.step import Output

S = TypeVar("S", bound=Spec)

FORMATS = [
    Affine(bits=b, group_size=g, symmetry=s)
    for b in get_args(Bits)
    for g in get_args(GroupSize)
    for s in get_args(Symmetry)
]


def one_of_each(union: Any) -> list[Any]:
    """An instance, with its defaults, of every member of an annotated discriminated union."""
    members = get_args(get_args(union)[0])
    return [member(kind=get_args(member.model_fields["kind"].annotation)[0]) for member in members]


def kind_of(spec: Any) -> str:
    """Test id of a part."""
    return str(spec.kind)


def hessian(inputs: int, seed: int = 0, *, decay: float = 1.5, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """(2/T) X^T X of inputs whose spectrum decays over `decay` decades."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64) / inputs**0.5
    x = torch.randn(4 * inputs, inputs, generator=generator, dtype=torch.float64)
    x = (x * torch.logspace(0, -decay, inputs, dtype=torch.float64)) @ mix
    return (x.T @ x * 2 / len(x)).to(dtype)


def weights(outputs: int, inputs: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Standard normal weights, rounded to bf16 as a checkpoint stores them."""
    generator = torch.Generator().manual_seed(seed + 1000)
    return torch.randn(outputs, inputs, generator=generator).bfloat16().to(dtype)


def question(
    *shapes: tuple[int, int], seed: int = 0, config: dict[str, Any] | None = None, **tensors: torch.Tensor
) -> dict[str, Output]:
    """What the quantize step is handed for one unit; `tensors` replaces `hessian` or a member's weight (`m0`, ...)."""
    members = tuple(f"model.layers.3.m{i}" for i in range(len(shapes)))
    unit = Unit(name="layers.3.m", block=3, members=members, shapes=shapes, statistics=("m",) * len(shapes))
    held = {
        f"{name}.weight": tensors.get(f"m{i}", weights(*shape, seed=seed + i, dtype=torch.bfloat16))
        for i, (name, shape) in enumerate(zip(members, shapes, strict=True))
    }
    H_II = tensors.get("hessian", hessian(shapes[0][1], seed, dtype=torch.float32))
    model = Output(meta={"unit": unit.model_dump(), "config": config or {"dtype": "bfloat16"}}, tensors=held)
    return {"model": model, "statistics": Output(tensors={"m.hessian": H_II})}


def proxy(W_OI: torch.Tensor, H_II: torch.Tensor, codes_OI: torch.Tensor, params: GridParams) -> float:
    """1/2 tr(D H D^T), written out in fp64."""
    D_OI = decode(codes_OI, params.scale_OG, params.zero_point_OG).double() - W_OI.double()
    return float(torch.trace(D_OI @ H_II.double() @ D_OI.T)) / 2


def one_column(W_OI: torch.Tensor, k: int, params: GridParams) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and values of column k rounded to nearest, by the grid's own function."""
    codes_O = nearest(W_OI, params)[:, k]
    group = W_OI.shape[1] // params.scale_OG.shape[1]
    zero_O1 = None if params.zero_point_OG is None else params.zero_point_OG[:, k // group, None]
    return codes_O, decode(codes_O[:, None], params.scale_OG[:, k // group, None], zero_O1)[:, 0].to(W_OI.dtype)


def update_form(W_OI: torch.Tensor, U_II: torch.Tensor, order: list[int], params: GridParams) -> torch.Tensor:
    """GPTQ as its paper has it, a column at a time: codes [O, I]. U is in rounding order, W and params are not."""
    rest_OI, codes_OI = W_OI.clone(), nearest(W_OI, params)
    for i, k in enumerate(order):
        codes_OI[:, k], what_O = one_column(rest_OI, k, params)
        error_O = (rest_OI[:, k] - what_O) / U_II[i, i]
        later = order[i + 1 :]
        rest_OI[:, later] -= error_O[:, None] * U_II[i, i + 1 :]
    return codes_OI


def upper_factor_of_inverse(H_II: torch.Tensor) -> torch.Tensor:
    """Upper U with H^-1 = U^T U."""
    inverse_II = torch.cholesky_inverse(torch.linalg.cholesky(H_II))
    return torch.linalg.cholesky(inverse_II, upper=True)
