"""What a unit must satisfy before it is quantized; every refusal names the tensor."""

from __future__ import annotations

import torch

from schemas.artifact import Unit
from schemas.errors import InputError
from schemas.format import Format, fitting


def check_groups(unit: Unit, fmt: Format) -> None:
    """InputError unless the format's groups divide the rows of every member."""
    for member, (_, columns) in zip(unit.members, unit.shapes, strict=True):
        if columns % fmt.columns(columns):
            raise InputError(
                f"format {fmt.name} does not fit: its groups do not divide the row",
                where=f"{member}.weight",
                got=f"rows of {columns} weights, groups of {fmt.columns(columns)}",
                wanted=f"one of {', '.join(fitting(columns))}",
                fix="take the format out of the node's `formats`, or give this unit one that fits",
            )


def check_tensor(tensor: torch.Tensor, shape: tuple[int, ...], where: str) -> None:
    """InputError unless the tensor has this shape and is finite."""
    if tuple(tensor.shape) != shape:
        raise InputError("tensor has the wrong shape", where=where, got=tuple(tensor.shape), wanted=shape)
    broken = int((~torch.isfinite(tensor)).sum())
    if broken:
        raise InputError(
            "tensor holds NaN or infinity",
            where=where,
            got=f"{broken} of {tensor.numel()} values",
            wanted="finite numbers",
            fix="check the source model's weights, or the calibration that made the Hessian",
        )
