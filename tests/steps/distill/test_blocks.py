"""Blocks trained one window after the other: what enters each, what it is trained to give, and whether it is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import tiny_value
from refinements import TOKENS, trained
from selections import selection_of

from steps.distill import run as distill
from steps.distill.blocks import relative_error
from steps.distill.fisher import output_fisher
from steps.distill.student import tensors_of
from steps.distill.train import Outcome
from steps.model.overlay import overlay
from steps.model.positions import take
from steps.model.stream import Stream
from steps.model.whole import all_blocks
from steps.sensitivity import backward
from steps.step import Output

SAID = {"step_kept": 8, "steps": 8, "steps_planned": 8, "tokens": 64, "passes": 1.0, "notes": []}


def scaled(tensors: Any, factor: float) -> dict[str, torch.Tensor]:
    """With scales that are `factor` times as large."""
    return {name: factor * tensor if name.endswith(".scale") else tensor for name, tensor in tensors.items()}


def by(factor: float, see: Callable[[Any], None] = lambda around: None) -> Callable[..., Outcome]:
    """In place of a training: scales times `factor`."""

    def train(spec: Any, task: Any, *rest: Any) -> Outcome:
        see(task.around)
        return Outcome(scaled(tensors_of(task.given), factor), SAID)

    return train


def by_blocks(model: Output, selection: Output, width: int = 1, stride: int = 1) -> Output:
    scope = {"kind": "blocks", "width": width, "stride": stride}
    return trained(model, selection, scope=scope, objective=[{"kind": "outputs"}])


def hidden(model: Output) -> list[torch.Tensor]:
    """hidden_NSD that enters each block, and what leaves the last."""
    stream = Stream(model)
    states = [stream.embed(TOKENS.tensors["ids_NS"])]
    with torch.no_grad():
        for k in range(stream.blocks):
            states.append(stream.run(stream.block(k), states[-1]))
    return states


@pytest.mark.parametrize(
    ("width", "stride", "times"), [(2, 1, (1, 2, 2, 2)), (2, 2, (1, 1, 1, 1)), (3, 2, (1, 1, 2, 1))]
)
def test_a_window_goes_from_what_was_refined_to_the_original(
    width: int, stride: int, times: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows that overlap train a block several times; only what none will train again enters the next one."""
    seen = list[tuple[torch.Tensor, torch.Tensor]]()
    monkeypatch.setattr(
        distill, "train", by(0.5, lambda a: seen.append((a.entering_NSD.clone(), a.target_NSD.clone())))
    )
    model = tiny_value(num_hidden_layers=4)
    right = selection_of(model, "int4-g32")
    given = Output(right.meta, children={n: Output(u.meta, scaled(u.tensors, 4)) for n, u in right.children.items()})
    found = by_blocks(model, given, width, stride)
    assert found.meta["distilled"]["step_kept"] == 8 * len(seen)
    for unit, item in found.children.items():
        wanted = scaled(given.children[unit].tensors, 0.5 ** times[int(unit.split(".")[1])])
        assert all(torch.equal(item.tensors[name], tensor) for name, tensor in wanted.items())
    original, refined, firsts = hidden(model), hidden(overlay(model, found)), range(0, 4, stride)
    for first, (entering_NSD, target_NSD) in zip(firsts, seen, strict=True):
        torch.testing.assert_close(entering_NSD, refined[first], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(target_NSD, original[min(first + width, 4)], rtol=1e-4, atol=1e-5)


def test_a_window_is_weighted_by_the_fisher_information_of_what_leaves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[torch.Tensor]()
    monkeypatch.setattr(distill, "train", by(0.5, lambda around: seen.append(around.fisher_D)))
    monkeypatch.setattr(distill, "output_fisher", lambda stream, blocks, *rest: list(torch.arange(len(blocks))))
    model = tiny_value(num_hidden_layers=4)
    scope, objective = {"kind": "blocks", "width": 2, "stride": 2}, [{"kind": "outputs", "fisher": True}]
    trained(model, selection_of(model, "int4-g32"), scope=scope, objective=objective)
    assert [int(fisher_D) for fisher_D in seen] == [1, 3]


def test_fisher_information_is_the_mean_squared_gradient_at_predicted_positions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Against one backward pass through the whole model, for the likeliest labels in place of drawn ones."""
    monkeypatch.setattr(backward, "draw_labels", lambda p_PV, samples, generator: p_PV.argmax(1, keepdim=True))
    stream = Stream(tiny_value())
    blocks, part = all_blocks(stream), take(TOKENS, [1, 5, 7])
    found = output_fisher(stream, blocks, [part], 0)
    states = [stream.embed(part.ids_NS)]
    for block in blocks:
        states.append(stream.run(block, states[-1].requires_grad_()))
    log_PV = torch.log_softmax(stream.logits(stream.final(part.pick(states[-1]))), -1)
    gradients = torch.autograd.grad(log_PV.amax(1).sum(), states[1:])
    for fisher_D, gradient_NSD in zip(found, gradients, strict=True):
        square_D = part.pick(gradient_NSD).square().mean(0)
        torch.testing.assert_close(fisher_D, square_D / square_D.mean(), rtol=1e-3, atol=1e-5)


def test_an_error_is_relative_to_a_target_that_is_weighted_alike() -> None:
    target_PD, weight_D = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0.1, 0.4, 2.5])
    assert relative_error(torch.zeros(5, 3), target_PD, weight_D).item() == pytest.approx(1)
    doubled_PD = target_PD * torch.tensor([1.0, 1.0, 2.0])
    share = relative_error(doubled_PD, target_PD, weight_D)
    square_D = weight_D * target_PD.square().sum(0)
    assert share.item() == pytest.approx((square_D[2] / square_D.sum()).item())


def test_blocks_that_make_the_whole_worse_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each may be better by its own measure."""
    monkeypatch.setattr(distill, "train", by(2))
    model = tiny_value()
    selection = selection_of(model, "int4-g32")
    found = by_blocks(model, selection)
    facts = found.meta["distilled"]
    assert facts["difference"]["low"] > 0 and facts["after"] == facts["before"] and facts["step_kept"] == 0
    assert any("kept its input" in note for note in facts["notes"])
    assert found.children == selection.children
