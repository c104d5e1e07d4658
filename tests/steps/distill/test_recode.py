"""Codes chosen again by curvature: what the descent promises, and that the model gets better by it."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from models import tiny_tokens, tiny_value
from refinements import other_text
from selections import selection_of

from schemas.distill import Recode
from steps.distill import recode
from steps.distill.codes.code import Bounds
from steps.distill.codes.spacing import Spacing, Table
from steps.distill.curvature import Curvature, moments
from steps.distill.descend import Descent, Gain, descend
from steps.distill.schedule import split
from steps.model.overlay import overlay
from steps.sensitivity.capture import Linears, Pass
from steps.step import Env, Output

TOKENS = tiny_tokens(80, 16)
LOW, HIGH = -4.0, 3.0
FAMILIES = [("llama", "int3-g32"), ("qwen3", "int3-row-asym"), ("mixtral", "int3-g32")]


def recoded(selection: Output, model: Output, text: Output = TOKENS, **settings: Any) -> Output:
    spec = Recode.model_validate({"step": "recode", "windows": 48, "held_out": 16, "batch": 8, **settings})
    with TemporaryDirectory() as own:
        inputs = {"model": model, "selection": selection, "tokens": text}
        return resident(recode.run(spec, inputs, Env(scratch=Path(own)))["selection"])


def resident(selection: Output) -> Output:
    """With its tensors in memory, as scratch ends with the step."""
    children = {unit: Output(item.meta, dict(item.tensors)) for unit, item in selection.children.items()}
    return Output(selection.meta, selection.tensors, children)


def factor(size: int, seed: int) -> torch.Tensor:
    root = torch.randn(size, size + 3, generator=torch.Generator().manual_seed(seed))
    return root @ root.T / size


def problem(rows: int, columns: int, seed: int) -> tuple[torch.Tensor, Spacing, Curvature]:
    """Weights, spacing with steps of both signs, curvature; a group per row."""
    generator = torch.Generator().manual_seed(seed)
    W_OI = torch.randn(rows, columns, generator=generator)
    step_OG1 = (W_OI.abs().amax(1) / 4 * torch.tensor([1.0, -1.0]).repeat(rows)[:rows]).view(rows, 1, 1)
    return W_OI, Spacing(step_OG1), Curvature(factor(columns, seed + 1), factor(rows, seed + 2))


def nearest(W_OI: torch.Tensor, spacing: Spacing) -> torch.Tensor:
    return spacing.levels(W_OI[:, None]).round().clamp(LOW, HIGH)


def loss(level_OGJ: torch.Tensor, spacing: Spacing, W_OI: torch.Tensor, curve: Curvature) -> float:
    """Oracle: the quadratic form by the whole Kronecker product."""
    d = (spacing.weights(level_OGJ).flatten(1) - W_OI).double().flatten()
    return float(d @ torch.kron(curve.G_OO.double(), curve.A_II.double()) @ d)


def found(W_OI: torch.Tensor, spacing: Spacing, curve: Curvature, passes: int = 500) -> Descent:
    bounds = Bounds(torch.tensor(LOW), torch.tensor(HIGH))
    return descend(nearest(W_OI, spacing), bounds, spacing, W_OI, curve, passes)


@pytest.mark.parametrize("seed", range(4))
def test_it_ends_where_no_single_move_helps(seed: int) -> None:
    W_OI, spacing, curve = problem(5, 8, seed)
    start_OGJ, ended = nearest(W_OI, spacing), found(W_OI, spacing, curve)
    gain = ended.gain
    assert gain.before == pytest.approx(loss(start_OGJ, spacing, W_OI, curve), rel=1e-5)
    assert gain.after == pytest.approx(loss(ended.level_OGJ, spacing, W_OI, curve), rel=1e-5)
    assert gain.after < 0.9 * gain.before and gain.moved > 0
    for place in range(W_OI.numel()):
        for way in (-1, 1):
            other_OGJ = ended.level_OGJ.clone()
            other_OGJ.view(-1)[place] = (other_OGJ.view(-1)[place] + way).clamp(LOW, HIGH)
            assert loss(other_OGJ, spacing, W_OI, curve) >= gain.after * (1 - 1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_no_pass_makes_it_worse(seed: int) -> None:
    """Moves that together gain nothing are taken back."""
    W_OI, spacing, curve = problem(12, 32, seed)
    after = [found(W_OI, spacing, curve, passes).gain.after for passes in range(30)]
    assert after == sorted(after, reverse=True)


class Astray(Curvature):
    """One whose sums over the passes go wrong."""

    def pull_of(self, at_K: torch.Tensor, move_K: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(self.G_OO), len(self.A_II))


@pytest.mark.parametrize("passes", [1, 2, 500])
def test_what_is_said_and_kept_is_the_loss_of_the_codes_not_a_sum_over_passes(passes: int) -> None:
    W_OI, spacing, curve = problem(12, 32, 2)
    ended = found(W_OI, spacing, Astray(curve.A_II, curve.G_OO), passes)
    assert ended.gain.after == pytest.approx(loss(ended.level_OGJ, spacing, W_OI, curve), rel=1e-5)
    assert ended.gain.after <= ended.gain.before


def test_levels_stay_whole_and_within_their_bounds() -> None:
    W_OI, spacing, curve = problem(16, 32, 9)
    level_OGJ = found(W_OI, spacing, curve).level_OGJ
    assert torch.equal(level_OGJ, level_OGJ.round())
    assert float(level_OGJ.min()) >= LOW and float(level_OGJ.max()) <= HIGH


def test_without_coupling_nearest_is_best() -> None:
    W_OI, spacing, _ = problem(6, 12, 3)
    ended = found(W_OI, spacing, Curvature(torch.eye(12), torch.eye(6)))
    assert ended.gain.moved == 0 and ended.gain.after == ended.gain.before


def test_a_table_of_values() -> None:
    W_OI, _, curve = problem(6, 12, 5)
    spacing = Spacing(torch.full((6, 1, 1), 0.2), table=Table(torch.tensor([-9.0, -4.0, -1.0, 1.0, 3.0, 10.0])))
    start_OGJ = spacing.levels(W_OI[:, None]).round().clamp(0, 5)
    bounds = Bounds(torch.tensor(0.0), torch.tensor(5.0))
    ended = descend(start_OGJ, bounds, spacing, W_OI, curve, 500)
    assert ended.gain.after == pytest.approx(loss(ended.level_OGJ, spacing, W_OI, curve), rel=1e-5)
    assert ended.gain.after < ended.gain.before


def test_few_moves_pull_as_all_would() -> None:
    curve, D_OI = Curvature(factor(12, 1), factor(9, 2)), torch.zeros(9, 12)
    for count in (1, 4, 9, 40):
        at_K = torch.randperm(108, generator=torch.Generator().manual_seed(count))[:count]
        move_K = torch.randn(count, generator=torch.Generator().manual_seed(7))
        dense_OI = D_OI.flatten().index_copy(0, at_K, move_K).view(9, 12)
        assert torch.allclose(curve.pull_of(at_K, move_K), curve.pull(dense_OI), atol=1e-5)


def test_curvature_is_of_inputs_and_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    input_RI, gradient_MRO = torch.randn(50, 6, generator=generator), torch.randn(2, 50, 4, generator=generator)
    half = []
    for rows in (slice(25), slice(25, 50)):
        seen = Pass(input_RI[rows], gradient_MRO[:, rows])
        passes = {"p": seen, "q": Pass(seen.input_RI, 2 * seen.gradient_MRO), "unasked": seen}
        half.append(Linears(passes, {"p": 4}, 25, 2))
    found = moments(half, {"p", "q", "unseen"})
    curve, same = found.curvature("p", 0.1), found.curvature("q", 0.1)
    assert curve is not None and same is not None and found.curvature("unseen", 0.1) is None
    assert list(found.input_II) == ["p"] and torch.equal(same.A_II, curve.A_II)
    A_II, G_OO = input_RI.T @ input_RI, sum(g.T @ g for g in gradient_MRO)
    for got, moment in ((curve.A_II, A_II), (curve.G_OO, G_OO)):
        wanted = moment / moment.diagonal().mean() + 0.1 * torch.eye(len(moment))
        assert torch.allclose(got, wanted / 1.1, atol=1e-5) and float(got.diagonal().mean()) == pytest.approx(1)


@pytest.mark.parametrize(("family", "form"), FAMILIES)
def test_the_model_gets_better_and_only_codes_change(family: str, form: str) -> None:
    model = tiny_value(family)
    selection = selection_of(model, form)
    again = recoded(selection, model)
    facts = again.meta["recoded"]
    assert facts["after"] < facts["before"] and facts["difference"]["high"] < 0 and 0 < facts["moved"] < 1
    assert facts["stayed"] == [] and facts["windows"] == 48
    for unit, item in selection.children.items():
        assert {n for n in item.tensors if n.endswith(".codes")} <= set(again.children[unit].tensors)
        for name, tensor in again.children[unit].tensors.items():
            assert tensor.shape == item.tensors[name].shape and tensor.dtype == item.tensors[name].dtype
            assert name.endswith(".codes") or torch.equal(tensor, item.tensors[name])
    assert facts["after"] == pytest.approx(_kl(model, again), rel=1e-4)


def _kl(model: Output, selection: Output) -> float:
    """Of the held-out windows, by the whole-model task of training."""
    from steps.distill.student import student
    from steps.distill.train import mean
    from steps.distill.whole import Pair, WholeTask
    from steps.model.stream import Stream
    from steps.model.whole import all_blocks

    original = Stream(model)
    pair = Pair(original, Stream(overlay(model, selection)), all_blocks(original))
    changed = student(None, model, selection, range(original.blocks), True, "cpu")
    return mean(WholeTask((), pair, changed, changed, TOKENS, split(80, 16, 0)[1]).measure(changed))


def test_windows_that_judge_choose_no_codes() -> None:
    model = tiny_value(num_hidden_layers=1)
    selection = selection_of(model, "int3-g32")
    first = recoded(selection, model)
    second = recoded(selection, model, other_text(TOKENS, split(80, 16, 0)[1]))
    facts, others = (each.meta["recoded"] for each in (first, second))
    assert facts["after"] < facts["before"] != others["before"] > others["after"]
    for unit, item in first.children.items():
        assert all(torch.equal(tensor, second.children[unit].tensors[name]) for name, tensor in item.tensors.items())


def test_windows_samples_damping_and_passes_each_change_what_is_gained() -> None:
    model = tiny_value(num_hidden_layers=1)
    selection = selection_of(model, "int3-g32")
    changes: list[dict[str, Any]] = [{}, {"windows": 24}, {"samples": 2}, {"damping": 1.0}, {"passes": 20}]
    found = [recoded(selection, model, **change).meta["recoded"]["estimate"] for change in changes]
    assert len(set(found)) == len(changes) and max(found) < 1


def test_what_does_not_help_beyond_doubt_is_thrown_away(monkeypatch: pytest.MonkeyPatch) -> None:
    def worse(level_OGJ: torch.Tensor, bounds: Bounds, *rest: Any) -> Descent:
        return Descent(bounds.clamp(level_OGJ + 1), Gain(1.0, 0.5, level_OGJ.numel(), level_OGJ.numel()))

    monkeypatch.setattr(recode, "descend", worse)
    model = tiny_value()
    selection = selection_of(model, "int3-g32")
    again = recoded(selection, model)
    facts = again.meta["recoded"]
    assert facts["after"] == facts["before"]
    for unit, item in selection.children.items():
        assert all(torch.equal(again.children[unit].tensors[name], tensor) for name, tensor in item.tensors.items())
    assert facts["notes"] == [recode.KEPT_INPUT]


def test_too_few_windows_are_told() -> None:
    model = tiny_value()
    assert "64 windows; 100 were asked for" in " ".join(
        recoded(selection_of(model, "int2-g32"), model, windows=100).meta["recoded"]["notes"]
    )


def test_a_killed_recoding_goes_on_and_ends_in_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, notes = tiny_value(), list[str]()
    selection = selection_of(model, "int3-g32")
    spec = Recode.model_validate({"step": "recode", "windows": 48, "held_out": 16, "batch": 8})
    inputs, calls = {"model": model, "selection": selection, "tokens": TOKENS}, list[int]()

    def counted(*arguments: Any) -> Descent:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return descend(*arguments)

    whole = recode.run(spec, inputs, Env(scratch=tmp_path / "whole"))["selection"]
    monkeypatch.setattr(recode, "descend", counted)
    env = Env(resume=tmp_path / "state", scratch=tmp_path / "own", note=notes.append)
    with pytest.raises(KeyboardInterrupt):
        recode.run(spec, inputs, env)
    kept = sorted((tmp_path / "state").iterdir())
    assert len(kept) == 4 and not notes
    kept[0].write_bytes(kept[0].read_bytes()[:-7])
    kept[1].write_bytes(kept[1].read_bytes()[:-1] + bytes([kept[1].read_bytes()[-1] ^ 1]))
    again = recode.run(spec, inputs, env)["selection"]
    matrices = sum(len(item.meta["members"]) for item in selection.children.values())
    assert len(calls) == 5 + matrices - 2 and len(notes) == 2 and all("is damaged" in note for note in notes)
    assert again.meta == whole.meta
    for unit, item in whole.children.items():
        assert all(torch.equal(tensor, again.children[unit].tensors[name]) for name, tensor in item.tensors.items())


def test_a_member_that_bears_no_curvature_stays_beside_one_that_changes() -> None:
    model = tiny_value()
    selection = selection_of(model, "int3-g32")
    up_proj = "model.layers.1.mlp.up_proj"
    dead = {**model.tensors, f"{up_proj}.weight": torch.zeros_like(model.tensors[f"{up_proj}.weight"])}
    found = recoded(selection, Output(model.meta, dead))
    before, after = (each.children["layers.1.mlp.gate_up"] for each in (selection, found))
    stays, moves = (f"model.layers.1.mlp.{name}.codes" for name in ("gate_proj", "up_proj"))
    assert "model.layers.1.mlp.gate_proj" in found.meta["recoded"]["stayed"]
    assert set(after.tensors) == set(before.tensors)
    assert torch.equal(after.tensors[stays], before.tensors[stays])
    assert not torch.equal(after.tensors[moves], before.tensors[moves])
