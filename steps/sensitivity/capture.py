"""Inputs of a block's linears and gradients at their outputs, by running the block forward and backward once more.

N windows, S positions, D hidden size, P predicted positions, R of them routed to an expert, O outputs, I inputs; M
samples of labels, C documents.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn

from steps.model.experts import Experts
from steps.model.positions import Batch
from steps.model.stream import Stream


class Captured(Protocol):
    """What one batch of windows says about the outputs of some matrices, by path."""

    @property
    def positions(self) -> int:
        """Predicted positions of the batch."""

    def dot(self, path: str, delta_OI: torch.Tensor) -> torch.Tensor:
        """g . dW x at every predicted position, dot_MP; 0 where the matrix was not used."""

    def squares(self, path: str, document_P: torch.Tensor, documents: int) -> torch.Tensor:
        """Sum of g^2 by document and output, mean over samples: square_CO fp64 on the CPU."""


@dataclass(frozen=True)
class Pass:
    """Of one linear in one batch: input_RI, gradient_MRO, and which predicted positions these are (None: all)."""

    input_RI: torch.Tensor
    gradient_MRO: torch.Tensor
    at_R: torch.Tensor | None = None


@dataclass(frozen=True)
class Linears:
    """The linears of a block, by path within it; an expert that no token of the batch reached is not among them."""

    passes: Mapping[str, Pass]
    outputs: Mapping[str, int]
    positions: int
    samples: int

    def dot(self, path: str, delta_OI: torch.Tensor) -> torch.Tensor:
        """g . dW x at every predicted position, dot_MP."""
        seen = self.passes.get(path)
        if seen is None:
            return torch.zeros(self.samples, self.positions, device=delta_OI.device)
        dot_MR = torch.einsum("mro,ro->mr", seen.gradient_MRO, seen.input_RI @ delta_OI.T)
        if seen.at_R is None:
            return dot_MR
        return torch.zeros(self.samples, self.positions, device=dot_MR.device).index_add_(1, seen.at_R, dot_MR)

    def squares(self, path: str, document_P: torch.Tensor, documents: int) -> torch.Tensor:
        """Sum of g^2 by document and output, mean over samples: square_CO."""
        sum_CO = torch.zeros(documents, self.outputs[path], dtype=torch.float64)
        if path in self.passes:
            seen = self.passes[path]
            square_RO = seen.gradient_MRO.square().mean(0).double().cpu()
            sum_CO.index_add_(0, document_P if seen.at_R is None else document_P[seen.at_R.cpu()], square_RO)
        return sum_CO


@dataclass(frozen=True)
class Seen:
    """A matrix in the last forward pass: input and output [tokens, ...], still in the autograd graph; which tokens."""

    input_TI: torch.Tensor
    output: torch.Tensor
    tokens_T: torch.Tensor | None


@contextmanager
def watched(block: nn.Module) -> Iterator[dict[str, Seen]]:
    """What the block's linears (and routers) see and say in each forward pass, while the context lasts."""
    seen: dict[str, Seen] = {}
    hooks = [
        module.register_forward_hook(partial(_note, seen, path, _experts_of(block, path)))
        for path, module in matrices(block).items()
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def matrices(block: nn.Module) -> dict[str, nn.Module]:
    """Path -> module of everything that multiplies by a two-dimensional weight of its own."""
    weights = {path: getattr(module, "weight", None) for path, module in block.named_modules()}
    return {
        path: block.get_submodule(path) for path, weight in weights.items() if weight is not None and weight.ndim == 2
    }


def _experts_of(block: nn.Module, path: str) -> Experts | None:
    owner = block.get_submodule(path.rsplit(".", 2)[0]) if path.count(".") > 1 else None
    return owner if isinstance(owner, Experts) else None


def _note(
    seen: dict[str, Seen],
    path: str,
    experts: Experts | None,
    module: nn.Module,
    arguments: tuple[Any, ...],
    output: Any,
) -> None:
    """A router returns its logits first."""
    said = output[0] if isinstance(output, tuple) else output
    seen[path] = Seen(arguments[0].flatten(0, -2), said, None if experts is None else experts.tokens_R)


def capture(
    stream: Stream,
    block: nn.Module,
    parts: Sequence[Batch],
    entering: Iterable[torch.Tensor],
    gradient: Iterable[torch.Tensor],
) -> Iterator[tuple[Captured, torch.Tensor]]:
    """Batch by batch: what the block's linears saw, and the gradient_MNSD at the block's input.

    `gradient` has, per batch, gradient_MNSD at the block's output. The last position of a window predicts nothing and
    nothing follows it, so its gradient is 0 and only predicted positions are kept.
    """
    outputs = {path: len(block.get_parameter(f"{path}.weight")) for path in matrices(block)}
    with watched(block) as seen:
        for part, hidden_NSD, toward_MNSD in zip(parts, entering, gradient, strict=True):
            leaf_NSD = hidden_NSD.detach().requires_grad_()
            out_NSD = stream.run(block, leaf_NSD)
            at = [leaf_NSD, *(each.output for each in seen.values())]
            found = [torch.autograd.grad(out_NSD, at, toward_NSD, retain_graph=True) for toward_NSD in toward_MNSD]
            entered_MNSD, *at_outputs = (torch.stack(of_one) for of_one in zip(*found, strict=True))
            passes = _passes(part, seen, at_outputs, leaf_NSD.shape[:2].numel())
            seen.clear()
            yield Linears(passes, outputs, len(part.rows_P), len(toward_MNSD)), entered_MNSD


def _passes(part: Batch, seen: Mapping[str, Seen], gradients: Sequence[torch.Tensor], tokens: int) -> dict[str, Pass]:
    """The predicted positions of each; linears that share an input share the tensor."""
    inputs, found = dict[int, torch.Tensor](), dict[str, Pass]()
    for (path, each), gradient_MTO in zip(seen.items(), gradients, strict=True):
        flat_MTO = gradient_MTO.flatten(1, -2)
        rows_R, at_R = _predicted(part, each.tokens_T, tokens, flat_MTO.device)
        shared = each.input_TI.data_ptr()
        if shared not in inputs:
            inputs[shared] = each.input_TI.detach()[rows_R]
        found[path] = Pass(inputs[shared], flat_MTO[:, rows_R], at_R)
    return found


def _predicted(
    part: Batch, tokens_T: torch.Tensor | None, tokens: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Rows of a matrix's input that are predicted positions, and which ones; None for all of them in order."""
    rows_P = part.rows_P.to(device)
    if tokens_T is None:
        return rows_P, None
    number = torch.full((tokens,), -1, device=device)
    number[rows_P] = torch.arange(len(rows_P), device=device)
    at_T = number[tokens_T]
    rows_R = torch.nonzero(at_T >= 0).squeeze(1)
    return rows_R, at_T[rows_R]
