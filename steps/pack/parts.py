"""What is packed: a selection laid beside the model it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from schemas.errors import InputError
from schemas.format import Format, read_format
from steps.model.overlay import NORMS
from steps.pack.sizes import scale_dtype_name
from steps.quantize.qtensor import QuantizedTensor, from_value
from steps.quantize.tensors.affine import AffineTensor
from steps.step import Value


@dataclass(frozen=True)
class Parts:
    """What goes into the weights: facts of the model, the format and the selection item of each quantized matrix."""

    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    linears: Mapping[str, Format]
    items: Mapping[str, Value]
    overrides: Mapping[str, torch.Tensor]


def parts_of(model: Value, selection: Value) -> Parts:
    """Lay a selection beside its model; InputError when they do not belong together."""
    shapes = {name: tuple(shape) for name, shape in model.meta["shapes"].items()}
    items = {
        member: item for unit, item in selection.children.items() if unit != NORMS for member in item.meta["members"]
    }
    order = [name.removesuffix(".weight") for name in shapes]
    linears = {m: read_format(items[m].meta["format"]) for m in order if m in items}
    overrides = selection.children[NORMS].tensors if NORMS in selection.children else {}
    for name in (*(f"{m}.weight" for m in items), *overrides):
        if name not in shapes:
            raise InputError("the selection has a tensor that the model lacks", where=name, fix="rebuild the selection")
    return Parts(model.meta["config"], shapes, model.meta["dtypes"], linears, items, overrides)


def quantized(parts: Parts, linear: str) -> QuantizedTensor:
    """The selected QuantizedTensor of one linear; InputError when its scales are not in the dtype of this file."""
    q = from_value(parts.items[linear], linear)
    wanted = scale_dtype_name(parts.config)
    if isinstance(q, AffineTensor) and str(q.scale_OG.dtype) != f"torch.{wanted}":
        raise InputError("scales have the wrong dtype", where=linear, got=q.scale_OG.dtype, wanted=wanted)
    return q


def plain(parts: Parts, model: Value, name: str) -> torch.Tensor:
    """A parameter that is not quantized: the selection's if it was trained, else the model's, in the stored dtype."""
    source = parts.overrides if name in parts.overrides else model.tensors
    dtype: torch.dtype = getattr(torch, parts.dtypes[name])
    return source[name].to(dtype)


def matrix_shape(parts: Parts, linear: str) -> tuple[int, int]:
    """(outputs, inputs) of a quantized matrix."""
    rows, columns = parts.shapes[f"{linear}.weight"]
    return rows, columns


def ordered(parts: Parts) -> set[str]:
    """Linears whose codes were chosen column by column in order of activation, groups staying in place."""
    return {name for name in parts.linears if parts.items[name].meta["members"][name].get("act_order")}
