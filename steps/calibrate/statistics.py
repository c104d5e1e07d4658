"""Calibration of one block on the original model: what each group of linears that share an input sees.

The hidden states that go to the next block are the original model's, so that statistics do not depend on any format
and a unit's quantization never has to be redone for another plan.

N windows, S positions, D hidden size, T tokens (padding included when `flat`), I inputs, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from schemas.calibrate import Calibrate
from steps.calibrate.coverage import with_coverage
from steps.calibrate.hessian import Hessian, spectrum
from steps.calibrate.ranges import Ranges
from steps.model.experts import Experts
from steps.model.stream import Stream
from steps.model.structure import EMBEDDING_UNIT, HEAD_UNIT, OrderGroup, order_groups
from steps.model.windows import advance, check_finite, valid_NS
from steps.step import Env, Output, Value

Hook = Callable[[nn.Module, tuple[torch.Tensor, ...]], None]


@dataclass(frozen=True)
class Collectors:
    """Everything collected on one group's input."""

    hessian: Hessian
    ranges: Ranges

    @classmethod
    def of(cls, inputs: int, device: torch.device) -> Collectors:
        """Empty ones, as wide as the group's input."""
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

    def hook(self, group: OrderGroup, experts: Experts | None) -> Hook:
        """A forward pre-hook for the group's first member; `experts` are those it belongs to."""

        def show(_member: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            x_TI = arguments[0].flatten(0, -2)
            valid_T = self.valid_NS[self.windows].flatten().to(x_TI.device)
            self.collectors[group.name].add(x_TI[valid_T if experts is None else valid_T[experts.tokens_R]])

        return show


def run(spec: Calibrate, inputs: Mapping[str, Value], env: Env) -> dict[str, Output]:
    """Statistics of the block `inputs["model"].meta["block"]`, and the hidden states that leave it.

    Padding is never counted, and an expert's statistics are of the tokens that were routed to it. `hidden` is empty
    after the last block, whose statistics have, if asked, what lies outside the blocks too: `lm_head` of final-normed
    hidden states, and `embed_tokens.frequency`, the share of tokens that each row of the embedding has.
    """
    model, tokens = inputs["model"], inputs["tokens"]
    stream, k = Stream(model, env.device), int(model.meta["block"])
    hidden_NSD = stream.embed(tokens.tensors["ids_NS"]).cpu() if k == 0 else inputs["hidden"].tensors["hidden_NSD"]
    block, out_NSD = stream.block(k), torch.empty_like(hidden_NSD)
    groups = order_groups(stream.settings, k)
    watch = watched(block, groups, valid_NS(tokens), stream.device)
    advance(stream, block, hidden_NSD, out_NSD, spec.batch, watch.turn_to)
    check_finite(out_NSD, f"{model.meta.get('name', 'model')}: output of block {k}")
    routed = {group.name for group in groups if group.expert is not None}
    statistics = with_coverage(_statistics(watch.collectors, routed), groups, spec.prior)
    if k < stream.blocks - 1:
        return {"statistics": statistics, "hidden": Output(tensors={"hidden_NSD": out_NSD})}
    if spec.ends:
        statistics = _with_ends(statistics, stream, tokens, out_NSD, spec.batch)
    return {"statistics": statistics, "hidden": Output()}


def watched(block: nn.Module, groups: tuple[OrderGroup, ...], valid_NS: torch.Tensor, device: torch.device) -> Watch:
    """Collectors hooked to each group's first member. The block is the caller's own copy: hooks stay."""
    first = {group.name: f"{group.members[0]}.weight" for group in groups}
    widths = {name: block.get_parameter(weight).shape[1] for name, weight in first.items()}
    watch = Watch({name: Collectors.of(width, device) for name, width in widths.items()}, valid_NS)
    for group in groups:
        member = block.get_submodule(group.members[0])
        experts: Any = None if group.expert is None else block.get_submodule(group.members[0].rsplit(".", 2)[0])
        member.register_forward_pre_hook(watch.hook(group, experts))
    return watch


def _statistics(collectors: Mapping[str, Collectors], routed: Collection[str] = ()) -> Output:
    """Tensors `<group>.hessian`, `.absmax`, `.mean_square`; meta: tokens that went through the block, and by group the
    tokens it saw and its Hessian's spectrum. A spectrum takes seconds: experts, of which there are many, go without."""
    tensors, groups = {}, {}
    for name, collected in collectors.items():
        tensors[f"{name}.hessian"] = H_II = collected.hessian.result()
        tensors[f"{name}.absmax"] = collected.ranges.absmax()
        tensors[f"{name}.mean_square"] = collected.ranges.mean_square()
        groups[name] = {"tokens": collected.hessian.tokens, **({} if name in routed else spectrum(H_II))}
    return Output(
        meta={"tokens": max(c.hessian.tokens for c in collectors.values()), "groups": groups}, tensors=tensors
    )


@torch.no_grad()
def _with_ends(statistics: Output, stream: Stream, tokens: Value, out_NSD: torch.Tensor, batch: int) -> Output:
    """What the head and the embedding see, beside a block's statistics."""
    valid, head = valid_NS(tokens), Collectors.of(out_NSD.shape[-1], stream.device)
    for start in range(0, len(out_NSD), batch):
        part = slice(start, start + batch)
        head.add(stream.final(out_NSD[part][valid[part]].to(stream.device)))
    ends = _statistics({HEAD_UNIT: head})
    ids_T = tokens.tensors["ids_NS"][valid].long()
    frequency_V = torch.bincount(ids_T, minlength=int(stream.config.vocab_size)).double() / len(ids_T)
    tensors = {**statistics.tensors, **ends.tensors, f"{EMBEDDING_UNIT}.frequency": frequency_V.float()}
    seen = {"tokens": len(ids_T), "rows_seen": int((frequency_V > 0).sum())}
    groups = {**statistics.meta["groups"], **ends.meta["groups"], EMBEDDING_UNIT: seen}
    return Output(meta={**statistics.meta, "groups": groups}, tensors=tensors)
