"""What training may change, and what it becomes on disk: scales and norms, relative to what they were.

O outputs, I inputs, G groups per row; X any shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from steps.model.overlay import NORMS
from steps.model.structure import block_prefix
from steps.quantize.qtensor import QuantizedTensor
from steps.step import Output, Value

FINAL_NORM = "model.norm.weight"


def as_stored(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`value` rounded to the dtype it will be stored in, in fp32; the gradient passes straight through."""
    return value + (value.detach().to(dtype).float() - value.detach())


@dataclass(frozen=True)
class Relative:
    """A tensor trained as start * (1 + delta); `dtype` is that of the file. delta 0 is the start, bit for bit."""

    start_X: torch.Tensor
    delta_X: torch.Tensor
    dtype: torch.dtype

    def value(self) -> torch.Tensor:
        """As it will be stored, in fp32, with gradients to `delta_X`."""
        return as_stored(self.start_X * (1 + self.delta_X), self.dtype)


def relative(start: torch.Tensor, dtype: torch.dtype, device: str) -> Relative:
    """A trainable tensor at its start."""
    start_X = start.to(device, torch.float32, copy=True)
    return Relative(start_X, torch.zeros_like(start_X, requires_grad=True), dtype)


@dataclass(frozen=True)
class Matrix:
    """A quantized linear: codes less zero points, fixed, and a trained scale."""

    offset_OGJ: torch.Tensor
    """int16; J inputs of each group."""
    scale_OG: Relative

    def weight(self) -> torch.Tensor:
        """W_OI fp32, equal to what `QuantizedTensor.dequantize` gives for the stored scale."""
        return (self.offset_OGJ * self.scale_OG.value()[..., None]).flatten(1)


@dataclass(frozen=True)
class Student:
    """Everything trained, by full parameter name of the weight or norm."""

    matrices: Mapping[str, Matrix]
    norms: Mapping[str, Relative]

    def trained(self) -> list[torch.Tensor]:
        """The deltas, in a fixed order."""
        return [*(m.scale_OG.delta_X for m in self.matrices.values()), *(n.delta_X for n in self.norms.values())]

    def block_weights(self, block: int) -> dict[str, torch.Tensor]:
        """Weights and norms of one block by name within it, with gradients."""
        prefix = block_prefix(block)
        matrices = {n: m.weight() for n, m in self.matrices.items() if n.startswith(prefix)}
        norms = {n: r.value() for n, r in self.norms.items() if n.startswith(prefix)}
        return {name.removeprefix(prefix): weight for name, weight in (matrices | norms).items()}

    def final_norm(self) -> torch.Tensor:
        """The final norm's weight, with gradients."""
        return self.norms[FINAL_NORM].value()


def student(model: Value, selection: Value, device: str) -> Student:
    """The selection as it stands: deltas are zero. Norms are all one-dimensional `*norm.weight` parameters."""
    matrices, norms = {}, {}
    for unit, item in selection.children.items():
        if unit == NORMS:
            continue
        for member in item.meta["members"]:
            q = QuantizedTensor.from_value(item, member)
            offset_OI = q.codes_OI.to(torch.int16)
            if q.zero_point_OG is not None:
                offset_OI -= q.zero_point_OG.to(torch.int16).repeat_interleave(q.format.columns(q.shape[1]), dim=1)
            offset_OGJ = offset_OI.view(*q.scale_OG.shape, -1).to(device)
            matrices[f"{member}.weight"] = Matrix(offset_OGJ, relative(q.scale_OG, q.scale_OG.dtype, device))
    given = selection.children[NORMS].tensors if NORMS in selection.children else {}
    for name in model.meta["shapes"]:
        if name.endswith("norm.weight"):
            stored = model.tensors[name]
            norms[name] = relative(given.get(name, stored), stored.dtype, device)
    return Student(matrices, norms)


def tensors_of(trained: Student) -> dict[str, torch.Tensor]:
    """What would be stored now, by full parameter name (a matrix's scale under its weight's name), on the CPU."""
    scales = {name: matrix.scale_OG for name, matrix in trained.matrices.items()}
    return {n: r.value().detach().to("cpu", r.dtype) for n, r in (scales | dict(trained.norms)).items()}


def selection_of(selection: Value, kept: Mapping[str, torch.Tensor]) -> dict[str, Value]:
    """Children of the trained selection: codes, formats and shapes as before, scales and norms from `kept`."""
    children: dict[str, Value] = {}
    used = set()
    for unit, item in selection.children.items():
        if unit != NORMS:
            scales = {f"{member}.scale": kept[f"{member}.weight"] for member in item.meta["members"]}
            used |= {f"{member}.weight" for member in item.meta["members"]}
            children[unit] = Output(item.meta, dict(item.tensors) | scales)
    children[NORMS] = Output(tensors={name: tensor for name, tensor in kept.items() if name not in used})
    return children
