"""What counts as better on held-out windows."""

from __future__ import annotations

import pytest
import torch

from schemas.distill import LEAST_HELD_OUT, Distill
from steps.distill.judge import KEPT_INPUT, Rows, best_of, crossed, judge, mean, notes_of
from steps.distill.resume import Progress
from steps.distill.train import _outcome


def rows(losses: list[float]) -> Rows:
    return [{"tokens": 9.0, "loss": loss} for loss in losses]


@pytest.mark.parametrize(("kept", "said"), [((0, 0), ["early", KEPT_INPUT]), ((0, 8), ["early"]), ((4, 8), ["early"])])
def test_blocks_together_kept_their_input_only_if_each_did(kept: tuple[int, int], said: list[str]) -> None:
    notes = [[] if step else [KEPT_INPUT] for step in kept]
    found = [{"step_kept": step, "notes": ["early", *each]} for step, each in zip(kept, notes, strict=True)]
    assert notes_of(found) == said


@pytest.mark.parametrize(("windows", "better"), [(1, False), (LEAST_HELD_OUT - 1, False), (LEAST_HELD_OUT, True)])
def test_few_windows_decide_for_the_input(windows: int, better: bool) -> None:
    """All of five are better by chance once in 32 times, and their interval lies below zero then."""
    assert 0.5**LEAST_HELD_OUT < 0.025 < 0.5 ** (LEAST_HELD_OUT - 1)
    facts, found = judge(rows([2.0] * windows), rows([1.0] * windows), 0, "KL")
    assert found is better and facts["after"] == (1.0 if better else 2.0)


def test_each_half_is_measured_where_the_other_half_chooses() -> None:
    checks = [rows([5, 5, 5, 5]), rows([1, 4, 2, 4]), rows([6, 2, 6, 3])]
    assert crossed(checks) == rows([6, 4, 6, 4])


def test_a_training_without_effect_is_seldom_kept() -> None:
    """Every check as good as the input but for noise: the best of thirty looks better where it was chosen."""
    spec, generator, kept, looked = Distill(step="distill"), torch.Generator().manual_seed(0), 0, 0
    for _ in range(200):
        noise = torch.randn(31, 24, generator=generator, dtype=torch.float64)
        checks = [rows((9 + each).tolist()) for each in noise]
        curve = [{"step": 10 * n, "held_out": mean(each)} for n, each in enumerate(checks)]
        progress = Progress(step=300, curve=curve, checks=checks, best={"codes": torch.ones(1)})
        outcome = _outcome(progress, "KL", 24, 16, spec)
        kept += bool(outcome.tensors)
        looked += judge(checks[0], checks[best_of(progress.held_out)], 0, "KL")[1]
        assert outcome.facts["after"] == (min(progress.held_out) if outcome.tensors else progress.held_out[0])
    assert looked > 40 > 2 * kept
