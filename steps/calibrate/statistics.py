"""Calibration of one block on the original model: what each group of linears that share an input sees.

The hidden states that go to the next block are the original model's, so that statistics do not depend on any format
and a unit's quantization never has to be redone for another plan.

N windows, S positions, D hidden size, T tokens, I inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from schemas.calibrate import Calibrate
from steps.calibrate.hessian import Hessian, spectrum
from steps.calibrate.ranges import Ranges
from steps.model.stream import Stream
from steps.model.structure import ORDER_GROUPS, OrderGroup
from steps.model.windows import advance, check_finite, valid_NS
from steps.step import Env, Output, Value

Hook = Callable[[nn.Module, tuple[torch.Tensor, ...]], None]


@dataclass(frozen=True)
class Collectors:
    """Everything collected on one group's input."""

    hessian: Hessian
    ranges: Ranges

    @classmethod
    def of(cls, block: nn.Module, group: OrderGroup, device: torch.device) -> Collectors:
        """Empty ones, as wide as the group's input."""
        inputs = block.get_parameter(f"{group.members[0]}.weight").shape[1]
        return cls(Hessian.empty(inputs, device), Ranges.empty(inputs, device))

    def add(self, x_TI: torch.Tensor) -> None:
        """Count these tokens in every collector."""
        self.hessian.add(x_TI)
        self.ranges.add(x_TI)


@dataclass
class Watch:
    """Shows each group's collectors what its first member is given, without padding."""

    collectors: Mapping[str, Collectors]
    valid_NS: torch.Tensor
    windows: slice = field(default_factory=lambda: slice(0, 0))
    """The windows that are going through the block now."""

    def turn_to(self, windows: slice) -> None:
        """The next batch is these windows."""
        self.windows = windows

    def hook(self, group: OrderGroup) -> Hook:
        """A forward pre-hook for the group's first member."""

        def show(_member: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            x_NSI = arguments[0]
            self.collectors[group.name].add(x_NSI[self.valid_NS[self.windows].to(x_NSI.device)])

        return show


def run(spec: Calibrate, inputs: Mapping[str, Value], env: Env) -> dict[str, Output]:
    """Statistics of the block `inputs["model"].meta["block"]`, and the hidden states that leave it.

    Padding is never counted. `hidden` is empty after the last block.
    """
    model, tokens = inputs["model"], inputs["tokens"]
    stream, k = Stream(model, env.device), int(model.meta["block"])
    hidden_NSD = stream.embed(tokens.tensors["ids_NS"]).cpu() if k == 0 else inputs["hidden"].tensors["hidden_NSD"]
    block, out_NSD = stream.block(k), torch.empty_like(hidden_NSD)
    watch = Watch({g.name: Collectors.of(block, g, stream.device) for g in ORDER_GROUPS}, valid_NS(tokens))
    for group in ORDER_GROUPS:  # the block is this call's own copy, so the hooks need no removing
        block.get_submodule(group.members[0]).register_forward_pre_hook(watch.hook(group))
    advance(stream, block, hidden_NSD, out_NSD, spec.batch, watch.turn_to)
    check_finite(out_NSD, f"{model.meta.get('name', 'model')}: output of block {k}")
    last = k == stream.blocks - 1
    hidden = Output() if last else Output(tensors={"hidden_NSD": out_NSD})
    return {"statistics": _statistics(watch.collectors), "hidden": hidden}


def _statistics(collectors: Mapping[str, Collectors]) -> Output:
    """Tensors `<group>.hessian`, `.absmax`, `.mean_square`; meta: tokens seen and the Hessian's spectrum by group."""
    tensors, groups = {}, {}
    for name, collected in collectors.items():
        tensors[f"{name}.hessian"] = H_II = collected.hessian.result()
        tensors[f"{name}.absmax"] = collected.ranges.absmax()
        tensors[f"{name}.mean_square"] = collected.ranges.mean_square()
        groups[name] = spectrum(H_II)
    seen = {collected.hessian.tokens for collected in collectors.values()}
    assert len(seen) == 1, "every group sees every token once"
    return Output(meta={"tokens": seen.pop(), "groups": groups}, tensors=tensors)
