"""QuantizedTensor, the hub: every rounding method ends in one, every file format starts from one.

A family of formats is a frozen dataclass in `tensors/` that satisfies the Protocol, and a case in `from_value`.
"""

from __future__ import annotations

from typing import Any, Protocol, assert_never

import torch

from schemas.errors import InputError
from schemas.format import Affine, Format, Ggml, Mixed, PerColumn, read_format
from steps.quantize.tensors.affine import AffineTensor
from steps.quantize.tensors.ggml import GgmlTensor
from steps.quantize.tensors.mixed import MixedTensor
from steps.step import Value


class QuantizedTensor(Protocol):
    """One quantized linear, whatever its family."""

    @property
    def name(self) -> str:
        """Module path, for example `model.layers.3.self_attn.q_proj`."""

    @property
    def format(self) -> Format:
        """The format it is in."""

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""

    def dequantize(self) -> torch.Tensor:
        """The represented weights [O, I] in fp32."""

    def nbytes(self) -> int:
        """Bytes of everything that represents the weights, before any file format's padding."""

    def rows(self, name: str, start: int, stop: int) -> QuantizedTensor:
        """Rows start:stop, under a name of their own."""

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """What the store keeps, named `<name>.<part>`; `from_value` undoes it."""


def from_value(value: Value, name: str) -> QuantizedTensor:
    """One member of a candidate or selection item, whose meta has `format` and `members[name].shape`."""
    fmt = read_format(value.meta["format"])
    match fmt:
        case Affine():
            return AffineTensor.from_tensors(value, name, fmt)
        case Ggml():
            return GgmlTensor.from_tensors(value, name, fmt)
        case Mixed() | PerColumn():
            return MixedTensor.from_tensors(value, name, fmt)
        case _:
            assert_never(fmt)


def affine(quantized: QuantizedTensor, wanted_by: str) -> AffineTensor:
    """The same tensor, for consumers that need its codes and scales; InputError when it is of another family."""
    if isinstance(quantized, AffineTensor):
        return quantized
    raise InputError(
        f"{wanted_by} needs integer codes with scales",
        where=quantized.name,
        got=f"format {quantized.format.name}",
        wanted="an affine format, for example int4-g64",
        fix=f"change the formats of the recipe, or leave {wanted_by} out",
    )


def item_meta(unit: str, fmt: Format, members: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Meta of one quantized unit: `members[name]` holds shape, loss and whatever the solver reports."""
    return {"unit": unit, "format": fmt.model_dump(mode="json"), "members": members}
