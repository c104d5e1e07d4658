"""What a training reads, at which rates, and what its curve says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models import tiny_value
from refinements import TOKENS, mean_kl, other_text, trained
from selections import selection_of, units_of

from schemas.distill import Distill
from steps.distill.schedule import share, split
from steps.distill.student import Student, student
from steps.distill.train import train
from steps.step import Env, Output

FISHER: dict[str, Any] = {"scope": {"kind": "blocks"}, "objective": [{"kind": "outputs", "fisher": True}]}
LATENTS: dict[str, Any] = {"codes": {"kind": "ste", "start": "weights"}}
"""Some are near to another code: a short training moves them there."""
OFFSETS: dict[str, Any] = {"codes": {"kind": "offsets", "limit": 0.25}, "optimizer": {"kind": "sign"}}


@pytest.mark.parametrize("parts", [{}, FISHER], ids=["whole", "Fisher weights"])
def test_windows_that_judge_teach_nothing(parts: dict[str, Any]) -> None:
    model = tiny_value(num_hidden_layers=1)
    selection = selection_of(model, "int2-g32")
    texts = (TOKENS, other_text(TOKENS, split(80, 16, 0)[1]))
    facts = [trained(model, selection, text=text, **parts).meta["distilled"] for text in texts]
    first, second = ((each["blocks"][0] if parts else each)["curve"] for each in facts)
    assert [check["train"] for check in first[1:]] == [check["train"] for check in second[1:]]
    assert all(a["held_out"] != b["held_out"] for a, b in zip(first, second, strict=True))


STILL: dict[str, Any] = {"tokens": 8 * 16, "rates": {"codes": 1e-9}}
"""One step that moves nothing."""


@pytest.mark.parametrize("scope", ["whole", "blocks"])
def test_a_check_is_of_whole_codes_and_a_step_of_soft_ones(scope: str) -> None:
    """Soft codes begin as the weights themselves, and their whole ones as those of this selection."""
    model = tiny_value(num_hidden_layers=1)
    parts = {"scope": {"kind": scope}, "objective": [{"kind": "logits"}], "codes": {"kind": "annealed"}}
    facts = trained(model, selection_of(model, "int2-g32"), **STILL, **parts).meta["distilled"]
    given, checked = (facts if scope == "whole" else facts["blocks"][0])["curve"]
    assert checked["held_out"] == pytest.approx(given["held_out"], rel=1e-3)
    assert checked["train"] < 0.01 * given["held_out"]


def test_behind_a_window_run_the_originals_blocks_and_a_term_counts_by_its_weight() -> None:
    model, held_out = tiny_value(num_hidden_layers=2), split(80, 16, 0)[1]
    selection = selection_of(model, "int2-g32")
    parts = {"scope": {"kind": "blocks"}, "objective": [{"kind": "logits", "weight": 3}]}
    first, second = trained(model, selection, **STILL, **parts).meta["distilled"]["blocks"]
    alone = Output(children={name: unit for name, unit in selection.children.items() if name.startswith("layers.0.")})
    assert first["before"] == pytest.approx(3 * mean_kl(model, alone, held_out), rel=1e-3)
    assert second["before"] == pytest.approx(3 * mean_kl(model, selection, held_out), rel=1e-3)
    once, twice = (
        trained(model, selection, **STILL, objective=[{"kind": "logits", "weight": weight}]).meta["distilled"]["curve"]
        for weight in (1, 2)
    )
    assert twice[1]["train"] == pytest.approx(2 * once[1]["train"]) and twice[1]["held_out"] == once[1]["held_out"]


def test_the_curve_has_the_mean_loss_of_the_steps_since_the_check_before() -> None:
    model = tiny_value(num_hidden_layers=1)
    selection = selection_of(model, "int2-g32")
    every_step, seldom = (
        trained(model, selection, tokens=6 * 8 * 16, check_every=n).meta["distilled"]["curve"] for n in (1, 4)
    )
    losses = [check["train"] for check in every_step[1:]]
    assert len(set(losses)) == 6
    assert [check["train"] for check in seldom[1:]] == pytest.approx([sum(losses[:4]) / 4, sum(losses[4:]) / 2])


def test_rates_of_codes_go_by_bits_and_by_the_length_of_the_training() -> None:
    """`auto` is 0.2 over the root of the steps; what a factor says of some bits concerns no scale and no other bits."""
    model = tiny_value(num_hidden_layers=1)
    names = ("int2-g32", "int3-g32")
    selection = selection_of(model, {unit.name: names[i % 2] for i, unit in enumerate(units_of(model))})
    rates = {"codes": "auto", "scales": 0.03, "norms": 0.05, "by_bits": {"2": 0.1}}
    spec = Distill.model_validate({"step": "distill", "rates": rates})
    moved = student(spec, model, selection, [0], True, "cpu")
    for steps, auto in ((100, 0.02), (400, 0.01)):
        rate = {id(variable): rate for variable, rate in moved.variables(spec, steps)}
        found = [(m.frame.quantized.format.bits, rate[id(m.code.variable)]) for m in moved.matrices.values()]
        assert {bits for bits, _ in found} == {2, 3}
        assert all(r == pytest.approx(auto * (0.1 if bits == 2 else 1)) for bits, r in found)
        assert {rate[id(s.delta_X)] for m in moved.matrices.values() for s in m.frame.scales} == {0.03}
        assert {rate[id(vector.delta_X)] for vector in moved.vectors.values()} == {0.05}


@pytest.mark.parametrize(
    ("parts", "rate"), [(LATENTS, 0.2 / math.sqrt(12)), (OFFSETS, 2 * 0.25 / 12)], ids=["latents", "offsets"]
)
def test_auto_is_the_rate_that_goes_with_the_steps(parts: dict[str, Any], rate: float) -> None:
    model = tiny_value(num_hidden_layers=1)
    selection = selection_of(model, "int2-g32")
    auto, same, other = (
        trained(model, selection, rates={"codes": codes}, **parts).meta["distilled"]["curve"]
        for codes in ("auto", rate, rate / 2)
    )
    assert auto == same != other


class Number:
    """A code that is one number, and what a training did to it, in order."""

    def __init__(self) -> None:
        self.variable = torch.zeros(1, requires_grad=True)
        self.progress, self.updated = list[float](), list[float]()

    def shape_gradient(self, progress: float) -> None:
        assert self.variable.grad is not None
        self.progress.append(progress)
        self.variable.grad.neg_()

    @torch.no_grad()
    def project(self) -> None:
        self.updated.append(self.variable.item())
        self.variable.zero_()


class NumberTask:
    """A task whose loss is the number that it trains."""

    measured = "nothing"

    def __init__(self) -> None:
        self.code, self.read = Number(), list[int]()
        variables = [(self.code.variable, 0.01)]
        matrix = SimpleNamespace(code=self.code)
        self.student: Any = SimpleNamespace(matrices={"it": matrix}, variables=lambda spec, steps: variables)
        self.given = self.student

    def loss(self, windows: Sequence[int]) -> torch.Tensor:
        assert self.code.variable.item() == 0
        self.read += windows
        return self.code.variable.sum()

    def measure(self, student: Student) -> list[dict[str, float]]:
        return [{"tokens": 1.0, "loss": 1.0}] * 6


def test_every_step_reads_the_next_windows_at_its_own_share_of_the_rate() -> None:
    """And codes shape the gradient before the update, told how far the training is, and are projected after it."""
    windows, task = [5, 3, 9, 7, 1, 8, 2, 0], NumberTask()
    row = {"optimizer": {"kind": "sign"}, "schedule": {"warmup": 0.3}}
    spec = Distill.model_validate({"step": "distill", "tokens": 10 * 3 * 16, "batch": 3, **row})
    train(spec, task, windows, 16, Env())
    assert task.read == (4 * windows)[:30]
    assert task.code.updated == pytest.approx([0.01 * share(step, 10, spec.schedule) for step in range(1, 11)])
    assert task.code.progress == pytest.approx([step / 10 for step in range(1, 11)])
