"""What is trained on what: a student, its loss on some windows, and how good it is on windows never trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from steps.distill.student import Student


class Task(Protocol):
    """One training: of the whole model, or of a window of its blocks."""

    @property
    def given(self) -> Student:
        """The input, as it is."""

    @property
    def measured(self) -> str:
        """What `measure` gives, for people: `KL`."""

    @property
    def student(self) -> Student:
        """What is trained."""

    def loss(self, windows: Sequence[int]) -> torch.Tensor:
        """Mean loss over the predicted positions of these windows, a scalar with gradients to the student."""

    def measure(self, student: Student) -> list[dict[str, float]]:
        """Of each held-out window, `tokens` (predicted positions) and `loss` (per position), with the student as it
        would be stored now."""
