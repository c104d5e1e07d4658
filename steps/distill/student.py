"""What is trained of a selection, what its blocks compute with now, and what would be stored now.

O outputs, G groups per row, J inputs of a group.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch

from schemas.distill import Training
from steps.distill.build import build_code
from steps.distill.codes.code import Bounds, Code, Grid
from steps.distill.relative import Relative, relative
from steps.model.overlay import NORMS
from steps.model.structure import block_prefix
from steps.quantize.grids.affine import code_dtype, code_range
from steps.quantize.qtensor import affine, from_value
from steps.quantize.tensors.affine import AffineTensor
from steps.step import Output, Value

FINAL_NORM = "model.norm.weight"
WANTED_BY = "training"
NOISE_WALK = 0.2
"""Steps of the grid that a latent may walk by noise alone over a whole training; see Rates."""


@dataclass(frozen=True)
class Matrix:
    """A quantized linear: w = scale * level."""

    quantized: AffineTensor
    code: Code
    scale_OG: Relative

    def weight(self, hard: bool) -> torch.Tensor:
        """W_OI fp32: as the forward pass of training sees it, or as `dequantize` gives what would be stored now."""
        scale_OG = self.scale_OG.value()
        level_OGJ = self.code.hard(scale_OG) if hard else self.code.levels(scale_OG)
        return (level_OGJ * scale_OG[..., None]).flatten(1)

    @torch.no_grad()
    def stored(self) -> AffineTensor:
        """What would be stored now, on the CPU; format, shape and zero points as before."""
        scale_OG = self.scale_OG.value()
        code_OGJ = self.code.hard(scale_OG)
        if (zero_OG := self.quantized.zero_point_OG) is not None:
            code_OGJ = code_OGJ + zero_OG[..., None].to(code_OGJ)
        codes_OI = code_OGJ.flatten(1).to("cpu", code_dtype(self.quantized.format))
        return replace(self.quantized, codes_OI=codes_OI, scale_OG=scale_OG.to("cpu", self.scale_OG.dtype))


@dataclass(frozen=True)
class Student:
    """Matrices by module path, norms and biases by parameter name."""

    matrices: Mapping[str, Matrix]
    vectors: Mapping[str, Relative]

    def variables(self, spec: Training, steps: int) -> list[tuple[torch.Tensor, float]]:
        """Everything that is trained with its peak learning rate in a training of so many steps, in a fixed order."""
        rates, found = spec.rates, list[tuple[torch.Tensor | None, float]]()
        codes = NOISE_WALK / math.sqrt(steps) if rates.codes == "auto" else rates.codes or 0
        for matrix in self.matrices.values():
            factor = rates.by_bits.get(str(matrix.quantized.format.bits), 1.0)  # type: ignore[call-overload]
            found.append((matrix.code.variable, factor * codes))
            found.append((matrix.scale_OG.delta_X, rates.scales or 0))
        found += [(vector.delta_X, rates.norms or 0) for vector in self.vectors.values()]
        return [(variable, rate) for variable, rate in found if variable is not None]

    def block_weights(self, block: int, hard: bool = False) -> dict[str, torch.Tensor]:
        """Weights, norms and biases of one block by name within it."""
        prefix = block_prefix(block)
        weights = {f"{n}.weight": m.weight(hard) for n, m in self.matrices.items() if n.startswith(prefix)}
        vectors = {n: v.value() for n, v in self.vectors.items() if n.startswith(prefix)}
        return {name.removeprefix(prefix): weight for name, weight in (weights | vectors).items()}

    def final_norm(self) -> dict[str, torch.Tensor]:
        """The final norm's parameters by name within it."""
        return {"weight": self.vectors[FINAL_NORM].value()}


def student(
    spec: Training | None, model: Value, selection: Value, blocks: Iterable[int], final: bool, device: str
) -> Student:
    """The blocks' part of the selection at its start, and the final norm if asked; without a spec, nothing is trained.

    InputError for a unit of these blocks whose format has no codes and scales.
    """
    rates = None if spec is None else spec.rates
    prefixes = tuple(block_prefix(k) for k in blocks)
    matrices: dict[str, Matrix] = {}
    for unit, item in selection.children.items():
        for member in item.meta["members"] if unit != NORMS else ():
            if member.startswith(prefixes):
                matrices[member] = _matrix(spec, affine(from_value(item, member), WANTED_BY), model, device)
    given = selection.children[NORMS].tensors if NORMS in selection.children else {}
    vectors = {}
    for name, shape in model.meta["shapes"].items():
        if len(shape) == 1 and (name.startswith(prefixes) or (final and name == FINAL_NORM)):
            stored = given[name] if name in given else model.tensors[name]
            moved = rates is not None and rates.norms is not None
            vectors[name] = relative(stored, device, moved, bias=name.endswith(".bias"))
    return Student(matrices, vectors)


def _matrix(spec: Training | None, quantized: AffineTensor, model: Value, device: str) -> Matrix:
    codes = spec.codes if spec is not None and spec.rates.codes is not None else None
    code = build_code(codes, _grid(quantized, model, device))
    scaled = spec is not None and spec.rates.scales is not None
    return Matrix(quantized, code, relative(quantized.scale_OG, device, scaled))


def _grid(quantized: AffineTensor, model: Value, device: str) -> Grid:
    """Levels and bounds are codes less zero points."""
    shape, (low, high) = quantized.scale_OG.shape, code_range(quantized.format)
    zero_OG1 = torch.zeros(*shape, 1, device=device)
    if quantized.zero_point_OG is not None:
        zero_OG1 = quantized.zero_point_OG.to(device, torch.float32)[..., None]
    weight_OI = model.tensors[f"{quantized.name}.weight"].to(device, torch.float32)
    return Grid(
        level_OGJ=quantized.codes_OI.to(device, torch.float32).view(*shape, -1) - zero_OG1,
        bounds=Bounds(low - zero_OG1, high - zero_OG1),
        scale_OG=quantized.scale_OG.to(device, torch.float32),
        weight_OGJ=weight_OI.view(*shape, -1),
    )


def tensors_of(trained: Student) -> dict[str, torch.Tensor]:
    """What would be stored now, by the names a selection uses, on the CPU; of vectors, those that are trained."""
    tensors: dict[str, torch.Tensor] = {}
    for matrix in trained.matrices.values():
        tensors |= matrix.stored().to_tensors()
    moved = {name: vector for name, vector in trained.vectors.items() if vector.delta_X is not None}
    return tensors | {name: vector.value().detach().to("cpu", vector.dtype) for name, vector in moved.items()}


def selection_of(selection: Value, kept: Mapping[str, torch.Tensor]) -> dict[str, Value]:
    """Children of the selection with `kept` (see `tensors_of`) in place of its own tensors; the rest stays."""
    children: dict[str, Value] = {}
    used = set()
    for unit, item in selection.children.items():
        if unit == NORMS:
            continue
        names = {name for name in item.tensors if name in kept}
        used |= names
        # What else an item holds (losses of its rounding) is no longer true of it.
        children[unit] = Output(item.meta, {name: kept[name] for name in sorted(names)}) if names else item
    old = dict(selection.children[NORMS].tensors) if NORMS in selection.children else {}
    vectors = {name: tensor for name, tensor in kept.items() if name not in used}
    if old | vectors:
        children[NORMS] = Output(tensors=old | vectors)
    return children
