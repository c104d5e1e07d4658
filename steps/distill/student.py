"""What is trained of a selection, what its blocks compute with now, and what would be stored now."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch

from schemas.distill import Offsets, Training
from schemas.format import Ggml, read_format
from steps.distill.build import build_code, build_start
from steps.distill.codes.code import Grid
from steps.distill.codes.fixed import FixedCode
from steps.distill.matrices.matrix import Matrix
from steps.distill.relative import Relative, relative
from steps.model.overlay import NORMS
from steps.model.spill import Part
from steps.model.structure import IN_BLOCKS, block_prefix
from steps.quantize.qtensor import from_value
from steps.step import Output, Value

FINAL_NORM = "model.norm.weight"
PLAIN = Ggml(type="f16")
"""The format whose numbers need no codes."""
NOISE_WALK = 0.2
"""Steps of the grid that a latent may walk by noise alone over a whole training; see Rates."""


@dataclass(frozen=True)
class Student:
    """Matrices by module path, norms and biases by parameter name."""

    matrices: Mapping[str, Matrix]
    vectors: Mapping[str, Relative]

    def variables(self, spec: Training, steps: int) -> list[tuple[torch.Tensor, float]]:
        """Everything that is trained with its peak learning rate in a training of so many steps, in a fixed order."""
        rates, found = spec.rates, list[tuple[torch.Tensor | None, float]]()
        codes = _auto(spec, steps) if rates.codes == "auto" else rates.codes or 0
        for matrix in self.matrices.values():
            bits = f"{matrix.frame.quantized.format.bits:g}"
            factor = rates.by_bits.get(bits, 1.0)  # type: ignore[call-overload]
            found.append((matrix.code.variable, factor * codes))
            found += [(part.delta_X, rates.scales or 0) for part in matrix.frame.scales]
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


def _auto(spec: Training, steps: int) -> float:
    """The rate of codes that goes with the length of a training; see Rates."""
    return 2 * spec.codes.limit / steps if isinstance(spec.codes, Offsets) else NOISE_WALK / math.sqrt(steps)


def student(
    spec: Training | None, model: Value, selection: Value, blocks: Iterable[int], final: bool, device: str
) -> Student:
    """The blocks' part of the selection at its start, and the final norm if asked; without a spec, nothing is trained.

    Embedding and head lie in no block: they stay (see `untrained`).
    """
    rates = None if spec is None else spec.rates
    prefixes = tuple(block_prefix(k) for k in blocks)
    matrices: dict[str, Matrix] = {}
    for unit, item in selection.children.items():
        for member in item.meta["members"] if unit != NORMS else ():
            if member.startswith(prefixes):
                matrices[member] = _matrix(spec, item, member, model, device)
    given = selection.children[NORMS].tensors if NORMS in selection.children else {}
    vectors = {}
    for name, shape in model.meta["shapes"].items():
        if len(shape) == 1 and (name.startswith(prefixes) or (final and name == FINAL_NORM)):
            stored = given[name] if name in given else model.tensors[name]
            moved = rates is not None and rates.norms is not None
            vectors[name] = relative(stored, device, moved, bias=name.endswith(".bias"))
    return Student(matrices, vectors)


def _matrix(spec: Training | None, item: Value, member: str, model: Value, device: str) -> Matrix:
    """One member of a unit. Plain numbers have no codes to choose; they stay."""
    start = build_start(item, member, device, scaled=spec is not None and spec.rates.scales is not None)
    if start.bounds is None:
        return Matrix(FixedCode(start.level_OGJ), start.frame)
    weight_OI = model.tensors[f"{member}.weight"].to(device, torch.float32)
    weight_OGJ = weight_OI.view(start.level_OGJ.shape)
    with torch.no_grad():
        grid = Grid(start.level_OGJ, start.bounds, start.frame.spacing(), weight_OGJ)
    codes = spec.codes if spec is not None and spec.rates.codes is not None else None
    return Matrix(build_code(codes, grid), start.frame)


def untrained(selection: Value) -> list[str]:
    """Units that no training changes: embedding and head, which lie in no block, and what has no codes (f16)."""
    units = {unit: item.meta for unit, item in selection.children.items() if unit != NORMS}
    return sorted(
        unit
        for unit, meta in units.items()
        if read_format(meta["format"]) == PLAIN or not all(member.startswith(IN_BLOCKS) for member in meta["members"])
    )


def tensors_of(trained: Student) -> dict[str, torch.Tensor]:
    """What would be stored now, by the names a selection uses, on the CPU; of vectors, those that are trained."""
    tensors: dict[str, torch.Tensor] = {}
    for matrix in trained.matrices.values():
        tensors |= matrix.stored().to_tensors()
    moved = {name: vector for name, vector in trained.vectors.items() if vector.delta_X is not None}
    return tensors | {name: vector.value().detach().to("cpu", vector.dtype) for name, vector in moved.items()}


def _untouched(item: Value, names: Collection[str]) -> dict[str, torch.Tensor]:
    """Of an item that is changed in part: the tensors of its other members."""
    others = [m for m in item.meta["members"] if not any(name.startswith(f"{m}.") for name in names)] if names else []
    return {name: tensor for m in others for name, tensor in from_value(item, m).to_tensors().items()}


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
        rest = _untouched(item, names)
        changed = Part(kept, frozenset(names))
        children[unit] = Output(item.meta, {**rest, **changed} if rest else changed) if names else item
    old = dict(selection.children[NORMS].tensors) if NORMS in selection.children else {}
    vectors = {name: kept[name] for name in kept if name not in used}
    if old | vectors:
        children[NORMS] = Output(tensors=old | vectors)
    return children
