"""Experts that few tokens reach: how many each saw, and a Hessian that leans on its siblings the less it saw.

T tokens, I inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from steps.model.structure import OrderGroup
from steps.step import Output


def with_coverage(statistics: Output, groups: Iterable[OrderGroup], prior: float) -> Output:
    """The statistics with every expert's Hessian shrunk: (T H + k H_shared) / (T + k), k = `prior` * I tokens.

    `gate` and `up` of all experts read one input space: H_shared is the mean of H over all routed tokens. The inputs of
    `down` are neurons, which no two experts share: there it is the mean square of all neurons of the layer, times the
    identity. Meta of an expert's group has its `tokens` and `own`, the weight T / (T + k) of what it saw itself.
    """
    kinds: dict[str, list[str]] = {}
    for group in groups:
        if group.expert is not None:
            kinds.setdefault(group.name.rpartition(".")[2], []).append(group.name)
    tensors, metas = dict(statistics.tensors), dict(statistics.meta["groups"])
    for kind, names in kinds.items():
        shared_II = _shared(tensors, metas, names, isotropic=kind == "down")
        for name in names:
            seen = metas[name]["tokens"]
            own = seen / (seen + prior * len(shared_II))
            tensors[f"{name}.hessian"] = torch.lerp(shared_II, tensors[f"{name}.hessian"].double(), own).float()
            metas[name] = {**metas[name], "own": own}
    meta = {**statistics.meta, "groups": metas}
    if kinds:
        meta["experts"] = coverage(metas, kinds["down"])
    return Output(meta, tensors)


def _shared(
    tensors: Mapping[str, torch.Tensor], metas: Mapping[str, Any], names: list[str], isotropic: bool
) -> torch.Tensor:
    """The layer's H_II fp64 over all routed tokens; the identity when no expert of it saw any."""
    total = sum(metas[name]["tokens"] for name in names)
    inputs = len(tensors[f"{names[0]}.hessian"])
    if not total:
        return torch.eye(inputs, dtype=torch.float64)
    sum_II = torch.zeros(inputs, inputs, dtype=torch.float64)
    for name in names:
        sum_II += tensors[f"{name}.hessian"].double() * (metas[name]["tokens"] / total)
    return torch.eye(inputs, dtype=torch.float64) * sum_II.diagonal().mean() if isotropic else sum_II


def coverage(metas: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """Of a layer's experts: how many there are, how many saw no token, the fewest and the median, all counts."""
    seen = sorted(metas[name]["tokens"] for name in names)
    return {"experts": len(seen), "without": seen.count(0), "fewest": seen[0], "median": seen[len(seen) // 2]}
