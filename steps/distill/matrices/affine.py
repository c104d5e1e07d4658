"""Affine integers: a scale per group, trained, and a zero point, which stays.

O outputs, I inputs, G groups per row, J inputs of a group.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from steps.distill.codes.code import Bounds
from steps.distill.codes.spacing import Spacing
from steps.distill.matrices.matrix import Start
from steps.distill.relative import Relative, relative
from steps.quantize.grids.affine import code_dtype, code_range
from steps.quantize.tensors.affine import AffineTensor


@dataclass(frozen=True)
class AffineFrame:
    """See Frame. Levels are codes less zero points."""

    quantized: AffineTensor
    scale_OG: Relative

    @property
    def scales(self) -> tuple[Relative]:
        """The scales."""
        return (self.scale_OG,)

    def spacing(self) -> Spacing:
        """A step per group."""
        return Spacing(self.scale_OG.value().unsqueeze(-1))

    def stored(self, level_OGJ: torch.Tensor) -> AffineTensor:
        """Zero points as before."""
        if (zero_OG := self.quantized.zero_point_OG) is not None:
            level_OGJ = level_OGJ + zero_OG[..., None].to(level_OGJ)
        codes_OI = level_OGJ.flatten(1).to("cpu", code_dtype(self.quantized.format))
        return replace(self.quantized, codes_OI=codes_OI, scale_OG=self.scale_OG.stored())


def affine_start(quantized: AffineTensor, device: str, trained: bool) -> Start:
    """Bounds are those of codes, less zero points."""
    shape, (low, high) = quantized.scale_OG.shape, code_range(quantized.format)
    zero_OG1 = torch.zeros(*shape, 1, device=device)
    if quantized.zero_point_OG is not None:
        zero_OG1 = quantized.zero_point_OG.to(device, torch.float32)[..., None]
    level_OGJ = quantized.codes_OI.to(device, torch.float32).view(*shape, -1) - zero_OG1
    bounds = Bounds(low - zero_OG1, high - zero_OG1)
    return Start(level_OGJ, bounds, AffineFrame(quantized, relative(quantized.scale_OG, device, trained)))
