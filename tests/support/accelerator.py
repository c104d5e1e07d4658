"""A second device made of the CPU: its tensors do not mix with the CPU's, as a GPU's do not.

Within `accelerator()` torch makes, moves and computes tensors of the device `pretend`. Code that mixes devices, draws
with a generator of the wrong one, or hands the device's tensors to numpy fails here as it would on a GPU; every number
is the CPU's. It cannot show a GPU's arithmetic, memory and streams, nor what the code does only where a device is
`cuda`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"
CPU = torch.device("cpu")
aten = torch.ops.aten
BETWEEN_DEVICES = {aten._to_copy.default, aten.copy_.default}
BY_INDEX = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
"""Their second argument, the indices, may lie on the CPU."""


class Placed(torch.Tensor):
    """A tensor of the second device; `held` has its numbers."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Placed:
        made: Placed = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        raise RuntimeError(f"{func}: the second device has gone")

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError(f"can't convert {NAME} device type tensor to numpy: copy it to host memory first")

    def tolist(self) -> Any:  # torch has none for tensors of subclasses
        return self.held.tolist()

    def data_ptr(self) -> int:
        return self.held.data_ptr()


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        tensors = [each for each in tree_leaves((args, given)) if isinstance(each, torch.Tensor)]
        here = any(isinstance(each, Placed) for each in tensors)
        target = given.get("device") or (torch.device(NAME) if here else CPU)
        if not here and target.type != NAME:
            return func(*args, **given)
        _check(func, args, given, tensors)
        found = func(*tree_map(_held, args), **tree_map(_held, given))
        if func is aten.copy_.default:
            return args[0]
        return tree_map(_placed, found) if target.type == NAME else found


def _check(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], tensors: Sequence[torch.Tensor]) -> None:
    """RuntimeError for what a GPU refuses. Single numbers of the CPU pass, as they do on a GPU in most places."""
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type != NAME:
        raise RuntimeError(f"{func}: a generator of {generator.device.type} for {NAME}")
    if func in BETWEEN_DEVICES:
        return
    if func in BY_INDEX and isinstance(args[0], Placed):
        tensors = [each for each in tree_leaves((args[0], args[2:])) if isinstance(each, torch.Tensor)]
    kinds = {type(each) is Placed for each in tensors if each.dim()}
    if len(kinds) > 1:
        raise RuntimeError(f"{func}: tensors of {NAME} and of the CPU")


def _held(value: Any) -> Any:
    if isinstance(value, Placed):
        return value.held
    return CPU if isinstance(value, torch.device) and value.type == NAME else value


def _placed(value: Any) -> Any:
    return Placed(value) if isinstance(value, torch.Tensor) else value


# Before the first backward pass of the process: torch then starts a thread for each device that it knows.
_setup_privateuseone_for_python_backend(NAME)
getattr(torch, NAME).get_amp_supported_dtype = lambda: [torch.bfloat16]
_whole = torch.library.Library("aten", "IMPL")
_whole.impl("silu_backward", lambda *_: None, "PrivateUse1")  # else torch takes it apart, and sums in another order


@contextmanager
def accelerator() -> Iterator[str]:
    """Torch with a second device; its name."""
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor(list, device=...)` fills its memory where only a CPU can
    try:
        with _Dispatch():
            yield NAME
    finally:
        torch._C._set_only_lift_cpu_tensors(before)
