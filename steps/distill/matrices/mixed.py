"""Several widths in one matrix: scales are trained, widths stay.

O outputs, I inputs, G groups that share a scale, J inputs of a group, K pieces that share a width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from schemas.format import PerColumn
from steps.distill.codes.code import Bounds
from steps.distill.codes.spacing import Spacing
from steps.distill.matrices.matrix import Start
from steps.distill.relative import Relative, relative
from steps.quantize.grids.pieces import Pieces
from steps.quantize.tensors.mixed import MixedTensor


@dataclass(frozen=True)
class MixedFrame:
    """See Frame. `power_1GJ`, of widths per column, is what a column's step is of its group's scale."""

    quantized: MixedTensor
    scale_OG: Relative
    power_1GJ: torch.Tensor | None

    @property
    def scales(self) -> tuple[Relative]:
        """The scales."""
        return (self.scale_OG,)

    def spacing(self) -> Spacing:
        """A step per group, or per row and column; powers of two round nothing."""
        scale_OG1 = self.scale_OG.value().unsqueeze(-1)
        return Spacing(scale_OG1 if self.power_1GJ is None else scale_OG1 * self.power_1GJ)

    def stored(self, level_OGJ: torch.Tensor) -> MixedTensor:
        """Levels are codes."""
        codes_OI = level_OGJ.flatten(1).to("cpu", torch.int8)
        return replace(self.quantized, codes_OI=codes_OI, scale_OG=self.scale_OG.stored())


def mixed_start(quantized: MixedTensor, device: str, trained: bool) -> Start:
    """Each piece has the bounds of its width, the same in every row."""
    groups, form, bits_K = quantized.scale_OG.shape[1], quantized.format, quantized.bits_K.to(device)
    levels = Pieces(torch.ones(1, len(bits_K), device=device), bits_K).levels(torch.float32)
    bounds = Bounds(*(bound_1K.view(1, groups, -1) for bound_1K in (levels.low_OG, levels.high_OG)))
    power_1GJ = None
    if isinstance(form, PerColumn):
        power_1GJ = torch.exp2(form.reference - bits_K.float()).view(1, groups, -1)
    level_OGJ = quantized.codes_OI.to(device, torch.float32).view(len(quantized.codes_OI), groups, -1)
    return Start(level_OGJ, bounds, MixedFrame(quantized, relative(quantized.scale_OG, device, trained), power_1GJ))
