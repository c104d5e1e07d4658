"""llama.cpp's types: a block's fp16 numbers d and dmin are trained; the integers they scale stay.

O outputs, I inputs, G groups and S blocks per row, J inputs of a group.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from steps.distill.codes.code import Bounds
from steps.distill.codes.spacing import Spacing, Table
from steps.distill.matrices.matrix import Start
from steps.distill.relative import Relative, relative
from steps.quantize.ggml.blocks import pack, unpack
from steps.quantize.ggml.kinds import KINDS
from steps.quantize.grids.ggml import GgmlGrid
from steps.quantize.tensors.ggml import GgmlTensor


@dataclass(frozen=True)
class GgmlFrame:
    """See Frame. Levels are codes less the type's zero; of a type with a table of values, they are its places.

    Places, because there every level is one step from the next, as in all other formats, and the nearest whole place is
    the nearest value (see Table). step = d * factor and offset = -dmin * min are products of one rounding each, in the
    order of `GgmlGrid.decode`.
    """

    quantized: GgmlTensor
    grid: GgmlGrid
    d_OS1: Relative
    factor_OSG: torch.Tensor
    dmin_OS1: Relative | None
    min_OSG: torch.Tensor | None
    table: Table | None

    @property
    def scales(self) -> tuple[Relative, ...]:
        """d, and dmin where there is one."""
        return (self.d_OS1,) if self.dmin_OS1 is None else (self.d_OS1, self.dmin_OS1)

    def spacing(self) -> Spacing:
        """A step, and for types with minima an offset, per group."""
        step_OG1 = (self.factor_OSG * self.d_OS1.value()).flatten(1).unsqueeze(-1)
        if self.dmin_OS1 is None or self.min_OSG is None:
            return Spacing(step_OG1, table=self.table)
        return Spacing(step_OG1, -(self.min_OSG * self.dmin_OS1.value()).flatten(1).unsqueeze(-1), self.table)

    def stored(self, level_OGJ: torch.Tensor) -> GgmlTensor:
        """Integer scales and minima as before."""
        kind = KINDS[self.grid.type]
        codes_OI = (level_OGJ + (0 if kind.values else kind.zero)).flatten(1).to("cpu", torch.uint8)
        dmin_OS = None if self.dmin_OS1 is None else self.dmin_OS1.stored().squeeze(-1)
        grid = replace(self.grid, d_OS=self.d_OS1.stored().squeeze(-1), dmin_OS=dmin_OS)
        return replace(self.quantized, blocks_OB=pack(codes_OI, grid))


@dataclass(frozen=True)
class PlainFrame:
    """See Frame. Numbers of their own, without scales: nothing is trained."""

    quantized: GgmlTensor
    scales: tuple[Relative, ...] = ()

    def spacing(self) -> Spacing:
        """Levels are weights."""
        return Spacing(torch.ones(()))

    def stored(self, level_OGJ: torch.Tensor) -> GgmlTensor:
        """As it was."""
        return self.quantized


def ggml_start(quantized: GgmlTensor, device: str, trained: bool) -> Start:
    """Codes, and the numbers that give them their meaning; of f16, the weights."""
    if quantized.format.type == "f16":
        return Start(quantized.dequantize().to(device)[:, None], None, PlainFrame(quantized))
    codes_OI, grid = unpack(quantized.format.type, quantized.blocks_OB)
    kind, groups = KINDS[grid.type], grid.scales().shape
    low = 0 if kind.values else -kind.zero
    level_OGJ = (codes_OI.to(device).float() + low).view(*groups, -1)
    bounds = Bounds(*(torch.tensor(float(end), device=device) for end in (low, low + kind.levels - 1)))
    return Start(level_OGJ, bounds, _frame(quantized, grid, device, trained))


def _frame(quantized: GgmlTensor, grid: GgmlGrid, device: str, trained: bool) -> GgmlFrame:
    values, shape = KINDS[grid.type].values, (*grid.d_OS.shape, -1)
    return GgmlFrame(
        quantized,
        grid,
        relative(grid.d_OS[..., None], device, trained),
        grid.factors().view(shape).to(device),
        None if grid.dmin_OS is None else relative(grid.dmin_OS[..., None], device, trained),
        None if grid.min_OG is None else grid.min_OG.float().view(shape).to(device),
        Table(torch.tensor(values, dtype=torch.float32, device=device)) if values else None,
    )
