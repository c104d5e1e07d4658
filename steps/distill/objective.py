"""Forward KL from the original to the student on the logits of whole windows.

N windows, S positions, D hidden size, P predicted positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from steps.distill.parameters import Student
from steps.model.positions import Batch
from steps.model.stream import Stream
from steps.model.swap import run_swapped
from steps.model.whole import hidden_from
from steps.verify.metrics import chunks, kl, log_probabilities

Weights = tuple[list[dict[str, torch.Tensor]], torch.Tensor]
"""Per block, weights and norms by name within it; the final norm."""


@dataclass(frozen=True)
class Teacher:
    """The original, resident; its blocks also run the student, whose weights are swapped in during a call."""

    stream: Stream
    blocks: Sequence[nn.Module]

    @torch.no_grad()
    def hidden(self, part: Batch) -> torch.Tensor:
        """The original's final-normed hidden_PD at the predicted positions."""
        return part.pick(hidden_from(self.stream, self.blocks, 0, self.stream.embed(part.ids_NS)))


def student_weights(student: Student, blocks: int) -> Weights:
    """Everything that the student's forward pass replaces, with gradients unless they are off."""
    return [student.block_weights(k) for k in range(blocks)], student.final_norm()


def student_hidden(teacher: Teacher, weights: Weights, part: Batch) -> torch.Tensor:
    """The student's final-normed hidden_PD at the predicted positions."""
    per_block, norm_D = weights
    hidden_NSD = teacher.stream.embed(part.ids_NS)
    for block, swapped in zip(teacher.blocks, per_block, strict=True):
        hidden_NSD = run_swapped(teacher.stream, block, hidden_NSD, swapped)
    normed_PD: torch.Tensor = torch.func.functional_call(
        teacher.stream.norm, {"weight": norm_D}, (part.pick(hidden_NSD),)
    )
    return normed_PD


def training_loss(teacher: Teacher, student: Student, part: Batch) -> torch.Tensor:
    """Mean KL(original || student) in nats per predicted position of a batch, fp32, with gradients."""
    log_p_PV = log_probabilities(teacher.stream.logits(teacher.hidden(part)))
    normed_PD = student_hidden(teacher, student_weights(student, teacher.stream.blocks), part)
    log_q_PV = torch.log_softmax(teacher.stream.logits(normed_PD), dim=-1)
    return nn.functional.kl_div(log_q_PV, log_p_PV, reduction="sum", log_target=True) / len(log_p_PV)


@torch.no_grad()
def held_out_kl(teacher: Teacher, student: Student, parts: Sequence[Batch], original: Sequence[torch.Tensor]) -> float:
    """Mean KL in nats per predicted position, summed in fp64; `original` holds the original's hidden_PD per batch."""
    stream, weights = teacher.stream, student_weights(student, teacher.stream.blocks)
    total, count = 0.0, 0
    for part, original_PD in zip(parts, original, strict=True):
        normed_PD = student_hidden(teacher, weights, part)
        for rows in chunks(len(normed_PD), stream.config.vocab_size):
            log_q_PV = torch.log_softmax(stream.logits(normed_PD[rows]), dim=-1)
            total += kl(log_probabilities(stream.logits(original_PD[rows])), log_q_PV).double().sum().item()
        count += len(normed_PD)
    return total / count
