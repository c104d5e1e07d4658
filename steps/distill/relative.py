"""A tensor trained relative to what it was, and rounded to the dtype of the file wherever it is used. X any shape."""

from __future__ import annotations

from dataclasses import dataclass

import torch


def as_stored(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`value` rounded to the dtype it will be stored in, in fp32; the gradient passes straight through."""
    return value + (value.detach().to(dtype).float() - value.detach())


@dataclass(frozen=True)
class Relative:
    """start + unit * delta, with delta a trained leaf, or None for a tensor that stays. delta 0 is the start, bit for
    bit."""

    start_X: torch.Tensor
    unit_X: torch.Tensor
    delta_X: torch.Tensor | None
    dtype: torch.dtype

    def value(self) -> torch.Tensor:
        """As it will be stored, in fp32, with gradients to `delta_X`."""
        if self.delta_X is None:
            return self.start_X
        return as_stored(self.start_X + self.unit_X * self.delta_X, self.dtype)

    @torch.no_grad()
    def stored(self) -> torch.Tensor:
        """The same in the dtype of the file, on the CPU."""
        return self.value().to("cpu", self.dtype)


def relative(start: torch.Tensor, device: str, trained: bool, bias: bool = False) -> Relative:
    """A tensor at its start. The unit of delta is each value itself, or a bias's root mean square."""
    start_X = start.to(device, torch.float32, copy=True)
    unit_X = start_X.square().mean().sqrt() if bias else start_X
    return Relative(start_X, unit_X, torch.zeros_like(start_X, requires_grad=True) if trained else None, start.dtype)
