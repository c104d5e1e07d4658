"""Packed matrices in the place of a model's own, in a model of transformers that is still on the meta device.

transformers 5 joins the experts of a block into two dense tensors; packed ones of several formats cannot be joined, so
the block is given experts of its own (steps/model/experts.py). Checkpoint names are kept, but for `block_sparse_moe`,
which transformers renames to `mlp` on loading.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from schemas.errors import InputError
from schemas.format import Format
from schemas.mixture import mixture
from steps.model.experts import Experts, module_name
from steps.pack.modules import PackedEmbedding, PackedLinear, PackedMatrix, TiedHead
from steps.pack.sizes import scale_dtype_name


class PackedRouter(PackedMatrix):
    """A router whose matrix stays packed; everything else about it is transformers' own."""

    def __init__(self, name: str, fmt: Format, shape: tuple[int, int], scale_dtype: str, router: nn.Module) -> None:
        super().__init__(name, fmt, shape, scale_dtype)
        self._router = (router,)  # in a tuple: its own weight is not one of this model's

    def forward(self, hidden: torch.Tensor) -> Any:
        """What the router says with the exact weights, rounded once to the dtype of its input."""
        weight_EI = self.dense().to(hidden.dtype)
        return torch.func.functional_call(self._router[0], {"weight": weight_EI}, (hidden,))


def put_packed(model: Any, matrices: Mapping[str, tuple[Format, tuple[int, int]]]) -> dict[str, PackedMatrix]:
    """Replace what these matrices belong to, by checkpoint name, with modules that hold nothing yet; returns those.

    A head that is tied to a packed embedding becomes a view of it.
    """
    scale_dtype, dtype = scale_dtype_name(model.config.to_dict()), model.dtype
    part_experts(model, matrices)
    found: dict[str, PackedMatrix] = {}
    for name, (fmt, shape) in matrices.items():
        parent, _, child = module_name(name).rpartition(".")
        old = model.get_submodule(module_name(name))
        found[name] = _packed(name, fmt, shape, old, scale_dtype, dtype)
        setattr(model.get_submodule(parent), child, found[name])
    if isinstance(model.get_input_embeddings(), PackedEmbedding) and model.config.tie_word_embeddings:
        model.set_output_embeddings(TiedHead(model.get_input_embeddings()))
        model.config.tie_word_embeddings, model.all_tied_weights_keys = False, {}
    return found


def _packed(
    name: str, fmt: Format, shape: tuple[int, int], old: nn.Module, scale_dtype: str, dtype: torch.dtype
) -> PackedMatrix:
    with torch.device("meta"):
        if isinstance(old, nn.Embedding):
            return PackedEmbedding(name, fmt, shape, scale_dtype, dtype)
        if isinstance(old, nn.Linear):
            return PackedLinear(name, fmt, shape, scale_dtype, old.bias)
        if _is_router(old):
            return PackedRouter(name, fmt, shape, scale_dtype, old)
    raise InputError(
        "a packed matrix belongs to a module that is neither linear nor embedding",
        where=name,
        got=type(old).__name__,
        fix="build it again for this architecture",
    )


def _is_router(module: nn.Module) -> bool:
    return hasattr(module, "top_k") and hasattr(module, "num_experts")


def part_experts(model: Any, names: Iterable[str]) -> None:
    """Give every block that has packed experts among `names` its experts one by one, on the meta device.

    InputError when some matrix of a block's experts is packed and another is not.
    """
    packed = {name for name in names if ".experts." in name}
    blocks = sorted({int(name.split(".")[2]) for name in packed})
    for k in blocks:
        found = mixture(model.config.to_dict(), k)
        assert found is not None
        wanted = {f"model.layers.{k}.{found.expert(e)}.{m}" for e in range(found.experts) for m in found.names}
        if missing := sorted(wanted - packed):
            raise InputError(
                "the experts of a block are packed in part",
                where=missing[0],
                got=f"{len(wanted) - len(missing)} of {len(wanted)} matrices packed",
                wanted="all of them, or none",
                fix="quantize every expert of the block, or keep them all",
            )
        block = model.model.layers[k].mlp
        with torch.device("meta"):
            block.experts = Experts(found, block.experts.hidden_dim, block.experts.act_fn)
