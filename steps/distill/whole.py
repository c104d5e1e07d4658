"""The whole model against the original, end to end.

N windows, S positions, D hidden size, P predicted positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from schemas.distill import Logits
from steps.distill.divergence import divergence
from steps.distill.student import Student
from steps.model.positions import Batch, take
from steps.model.stream import Stream
from steps.model.swap import run_swapped
from steps.model.whole import hidden_from
from steps.step import Value
from steps.verify.metrics import chunks, kl, log_probabilities

Weights = tuple[list[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
"""Per block, weights by name within it; the final norm's."""


def weights_of(student: Student, blocks: int, hard: bool) -> Weights:
    """Everything that the student's forward pass replaces."""
    return [student.block_weights(k, hard) for k in range(blocks)], student.final_norm()


@dataclass(frozen=True)
class Pair:
    """The original, resident, and the student's own embedding and head (which a selection may have quantized).

    The original's blocks also run the student, whose weights are swapped in during a call.
    """

    original: Stream
    quantized: Stream
    blocks: Sequence[nn.Module]

    @torch.no_grad()
    def target(self, part: Batch) -> torch.Tensor:
        """The original's final-normed hidden_PD at the predicted positions."""
        return part.pick(hidden_from(self.original, self.blocks, 0, self.original.embed(part.ids_NS)))

    def hidden(self, weights: Weights, part: Batch) -> torch.Tensor:
        """The student's final-normed hidden_PD at the predicted positions."""
        per_block, norm = weights
        hidden_NSD = self.quantized.embed(part.ids_NS)
        for block, swapped in zip(self.blocks, per_block, strict=True):
            hidden_NSD = run_swapped(self.original, block, hidden_NSD, swapped)
        normed_PD: torch.Tensor = torch.func.functional_call(self.original.norm, norm, (part.pick(hidden_NSD),))
        return normed_PD


@dataclass(frozen=True)
class WholeTask:
    """See Task."""

    terms: Sequence[Logits]
    pair: Pair
    given: Student
    student: Student
    tokens: Value
    kept_out: Sequence[int]
    measured: str = "KL"

    def loss(self, windows: Sequence[int]) -> torch.Tensor:
        """Sum of the terms."""
        part, pair = take(self.tokens, windows), self.pair
        original_PV = pair.original.logits(pair.target(part))
        weights = weights_of(self.student, len(pair.blocks), hard=False)
        student_PV = pair.quantized.logits(pair.hidden(weights, part))
        return torch.stack([t.weight * divergence(t, original_PV, student_PV) for t in self.terms]).sum()

    @torch.no_grad()
    def measure(self, student: Student) -> list[dict[str, float]]:
        """Forward KL, whatever is trained on: it is what the build will be judged by."""
        weights, rows = weights_of(student, len(self.pair.blocks), hard=True), []
        for part, target_PD in zip(self._checks, self._targets, strict=True):
            kl_P = self._kl(target_PD, self.pair.hidden(weights, part))
            rows.append({"tokens": float(len(kl_P)), "loss": kl_P.double().mean().item()})
        return rows

    def _kl(self, target_PD: torch.Tensor, hidden_PD: torch.Tensor) -> torch.Tensor:
        found = []
        for rows in chunks(len(target_PD), self.pair.original.config.vocab_size):
            log_q_PV = torch.log_softmax(self.pair.quantized.logits(hidden_PD[rows]), dim=-1)
            found.append(kl(log_probabilities(self.pair.original.logits(target_PD[rows])), log_q_PV))
        return torch.cat(found)

    @cached_property
    def _checks(self) -> list[Batch]:
        return [take(self.tokens, [window]) for window in self.kept_out]

    @cached_property
    def _targets(self) -> list[torch.Tensor]:
        return [self.pair.target(part) for part in self._checks]
