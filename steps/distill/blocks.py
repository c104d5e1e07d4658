"""A window of blocks against the original's: inputs from the quantized blocks before it, targets from the original.

N windows of text, S positions, D hidden size, P predicted positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from schemas.distill import Outputs, Term
from steps.distill.divergence import divergence
from steps.distill.student import Student
from steps.model.positions import Batch, take
from steps.model.stream import Stream
from steps.model.swap import run_swapped
from steps.step import Value

LEAST_SQUARE = 1e-30
"""Of a target that is zero everywhere; keeps a relative error finite."""


@dataclass(frozen=True)
class Around:
    """What a window of blocks is trained between.

    `first` is the number of its first block; `blocks` are all of the original's blocks that are at hand, by number: the
    window's own, and all behind it where a logits term asks for them.
    """

    stream: Stream
    blocks: dict[int, nn.Module]
    first: int
    width: int
    entering_NSD: torch.Tensor
    """What enters the window in the quantized model."""
    target_NSD: torch.Tensor
    """What leaves it in the original."""
    fisher_D: torch.Tensor | None
    """Weights of the output's dimensions, mean 1."""

    def leave(self, student: Student, entering_NSD: torch.Tensor, hard: bool) -> torch.Tensor:
        """The window's output hidden_NSD with the student's weights."""
        hidden_NSD = entering_NSD.to(self.stream.device)
        for k in range(self.first, self.first + self.width):
            hidden_NSD = run_swapped(self.stream, self.blocks[k], hidden_NSD, student.block_weights(k, hard))
        return hidden_NSD

    def logits(self, part: Batch, leaving_NSD: torch.Tensor) -> torch.Tensor:
        """logits_PV of the original's remaining blocks run on the window's output."""
        hidden_NSD = leaving_NSD
        for k in range(self.first + self.width, self.stream.blocks):
            hidden_NSD = self.stream.run(self.blocks[k], hidden_NSD)
        return self.stream.logits(self.stream.final(part.pick(hidden_NSD)))


@dataclass(frozen=True)
class BlocksTask:
    """See Task. The loss on held-out windows is the objective itself."""

    objective: Sequence[Term]
    around: Around
    given: Student
    student: Student
    tokens: Value
    kept_out: Sequence[int]
    measured: str = "block error"

    def loss(self, windows: Sequence[int]) -> torch.Tensor:
        """Sum of the objective's terms."""
        return self._loss(self.student, windows, hard=False)

    @torch.no_grad()
    def measure(self, student: Student) -> list[dict[str, float]]:
        """The objective per held-out window, with the student as it would be stored."""
        rows = []
        for window in self.kept_out:
            positions = float(len(take(self.tokens, [window]).rows_P))
            rows.append({"tokens": positions, "loss": self._loss(student, [window], hard=True).item()})
        return rows

    def _loss(self, student: Student, windows: Sequence[int], hard: bool) -> torch.Tensor:
        part, index_N = take(self.tokens, windows), torch.tensor(list(windows))
        length = part.ids_NS.shape[1]
        leaving_NSD = self.around.leave(student, self.around.entering_NSD[index_N, :length], hard)
        target_NSD = self.around.target_NSD[index_N, :length].to(leaving_NSD.device)
        terms = [term.weight * self._term(term, part, leaving_NSD, target_NSD) for term in self.objective]
        return torch.stack(terms).sum()

    def _term(self, term: Term, part: Batch, leaving_NSD: torch.Tensor, target_NSD: torch.Tensor) -> torch.Tensor:
        if isinstance(term, Outputs):
            return relative_error(part.pick(leaving_NSD), part.pick(target_NSD), self.around.fisher_D)
        with torch.no_grad():
            original_PV = self.around.logits(part, target_NSD)
        return divergence(term, original_PV, self.around.logits(part, leaving_NSD))


def relative_error(out_PD: torch.Tensor, target_PD: torch.Tensor, weight_D: torch.Tensor | None) -> torch.Tensor:
    """Squared error over the target's square, summed over positions and dimensions, both weighted alike."""
    error_PD, square_PD = (out_PD - target_PD).square(), target_PD.square()
    if weight_D is not None:
        error_PD, square_PD = error_PD * weight_D, square_PD * weight_D
    return error_PD.sum() / square_PD.sum().clamp(min=LEAST_SQUARE)
