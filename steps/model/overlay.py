"""The original model with a selection's weights in place of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch

from schemas.errors import InputError
from steps.quantize.qtensor import from_value
from steps.step import Output, Value

NORMS = "norms"
"""Child of a selection whose tensors override parameters of the model, by full name."""


class Replaced(Mapping[str, torch.Tensor]):
    """A lazy mapping of tensors, some of which are made elsewhere; each is made anew when asked for."""

    def __init__(self, base: Mapping[str, torch.Tensor], makers: Mapping[str, Callable[[], torch.Tensor]]) -> None:
        self._base, self._makers = base, makers

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._makers[name]() if name in self._makers else self._base[name]

    def __contains__(self, name: object) -> bool:
        return name in self._base

    def __iter__(self) -> Iterator[str]:
        return iter(self._base)

    def __len__(self) -> int:
        return len(self._base)


def dequantized(item: Value, member: str) -> torch.Tensor:
    """W_OI fp32 of one linear of a quantized unit."""
    return from_value(item, member).dequantize()


def overlay(model: Value, selection: Value) -> Output:
    """`model` whose quantized linears read as their dequantized fp32 weights and whose norms are the selection's.

    InputError when the selection holds a tensor that the model has not.
    """
    makers: dict[str, Callable[[], torch.Tensor]] = {}
    for name, item in selection.children.items():
        if name == NORMS:
            makers |= {tensor: partial(item.tensors.__getitem__, tensor) for tensor in item.tensors}
        else:
            makers |= {f"{member}.weight": partial(dequantized, item, member) for member in item.meta["members"]}
    strangers = sorted(set(makers) - set(model.tensors))
    if strangers:
        raise InputError(
            "the selection replaces a tensor that the model does not have",
            where=strangers[0],
            fix="check that the selection was made from this model",
        )
    return Output(model.meta, Replaced(model.tensors, makers), model.children, model.files)
