"""Refinement: what may change, what must not, that it never hurts, and that a killed one ends in the same bytes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models import tiny_tokens, tiny_value
from refinements import SETTINGS, TOKENS, mean_kl, same, trained
from selections import representable, selection_of, units_of

from pipelines.methods.refine import refinement_of
from schemas.distill import Distill, Training
from schemas.errors import InputError
from steps.distill import run as distill
from steps.distill import train as training
from steps.distill.memory import training_bytes
from steps.distill.relative import as_stored
from steps.distill.resume import Progress
from steps.distill.schedule import split
from steps.distill.student import FINAL_NORM, student, tensors_of
from steps.distill.train import _check, _enough
from steps.distill.whole import Pair, WholeTask
from steps.model.overlay import overlay
from steps.model.stream import Stream
from steps.model.whole import all_blocks
from steps.quantize.qtensor import from_value
from steps.step import Env, Output


@pytest.mark.parametrize(("family", "form"), [("llama", "int2-g32"), ("qwen3", "int3-row-asym")])
def test_training_helps_and_what_is_reported_is_what_the_stored_tensors_do(family: str, form: str) -> None:
    model = tiny_value(family, dtype=torch.bfloat16)
    selection = selection_of(model, form)
    found = trained(model, selection)
    facts, held_out = found.meta["distilled"], split(80, 16, 0)[1]
    assert facts["after"] < 0.95 * facts["before"] and facts["step_kept"] > 0 and facts["difference"]["high"] < 0
    assert facts["before"] == pytest.approx(mean_kl(model, selection, held_out), rel=1e-4)
    assert facts["after"] == pytest.approx(mean_kl(model, found, held_out), rel=1e-4)
    assert facts["after"] == min(check["held_out"] for check in facts["curve"])
    assert [check["step"] for check in facts["curve"]] == [0, 4, 8, 12]
    assert facts["tokens"] == 1536 and facts["passes"] == 96 / 64 and "used 1.5 times" in " ".join(facts["notes"])


RATES = {"latent": 0.05, "autoround": 0.03, "discquant": 0.3, "pdquant": 0.5, "bitdistiller": 0.03}
"""Large ones: a tiny model is trained for a few steps."""


@pytest.mark.parametrize("name", RATES)
def test_every_row_refines_codes_within_format_and_bytes(name: Any) -> None:
    model = tiny_value(dtype=torch.bfloat16)
    names = ["int2-g32"] if name == "latent" else ["int2-g32", "int4-row", "int3-g32-asym", "int2-row-sym"]
    selection = selection_of(model, {u.name: names[i % len(names)] for i, u in enumerate(units_of(model))})
    row = refinement_of(name).model_dump()
    trains = [part for part, rate in row["rates"].items() if rate and part != "by_bits"]
    row |= {"batch": 8, "held_out": 16, "check_every": 8, "tokens": 32 * 8 * 16}
    row["rates"] = {part: RATES[name] if part == "codes" else 0.01 for part in trains}
    found = trained(model, selection, **row)
    facts, changed = found.meta["distilled"], 0
    assert facts["after"] < facts["before"] and facts["step_kept"] > 0
    assert found.meta["plan"] == selection.meta["plan"]
    for unit, child in selection.children.items():
        assert found.children[unit].meta == child.meta
        assert set(found.children[unit].tensors) == set(child.tensors)
        for part, tensor in child.tensors.items():
            other = found.children[unit].tensors[part]
            assert (other.dtype, other.shape) == (tensor.dtype, tensor.shape)
            changed += part.endswith(".codes") and not torch.equal(other, tensor)
    assert changed
    norms = found.children["norms"].tensors if "norms" in found.children else {}
    assert all(tensor.dtype == torch.bfloat16 for tensor in norms.values())


def test_fixed_codes_stay() -> None:
    model = tiny_value(dtype=torch.bfloat16)
    selection = selection_of(model, "int3-g32-asym")
    found = trained(model, selection, rates={"scales": 0.01, "norms": 0.01})
    for unit, child in selection.children.items():
        for name, tensor in child.tensors.items():
            assert torch.equal(found.children[unit].tensors[name], tensor) != name.endswith(".scale")
    assert set(found.children["norms"].tensors) == {name for name in model.tensors if name.endswith("norm.weight")}


def test_equal_seeds_give_equal_bytes_and_no_global_generator_is_touched() -> None:
    model = tiny_value()
    selection = selection_of(model, "int2-g32")
    torch.manual_seed(1)
    first = trained(model, selection)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    second = trained(model, selection)
    assert torch.equal(state, torch.random.get_rng_state())
    assert same(first, second)
    assert first.meta != trained(model, selection, seed=1).meta


@pytest.mark.parametrize("scope", ["whole", "blocks"])
def test_a_killed_training_goes_on_where_it_was_and_ends_in_the_same_bytes(scope: str, tmp_path: Path) -> None:
    model = tiny_value()
    selection = selection_of(model, "int2-g32")
    row: dict[str, Any] = {"check_every": 2}
    if scope == "blocks":
        row |= {"scope": {"kind": "blocks", "width": 2}, "objective": [{"kind": "outputs"}]}
    whole = trained(model, selection, **row)
    steps: list[int] = []

    def killed(done: int, total: int, what: str) -> None:
        steps.append(done)
        if len(steps) == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(model, selection, Env(progress=killed, resume=tmp_path), **row)
    assert [path.name for path in tmp_path.iterdir()] == [
        "training.safetensors" if scope == "whole" else "blocks-0.safetensors"
    ]
    after: list[int] = []
    again = Env(progress=lambda done, total, what: after.append(done), resume=tmp_path)
    assert same(whole, trained(model, selection, again, **row))
    assert after[0] == 5, "saved after 4 steps: two checks of two steps"


@pytest.mark.parametrize("damage", ["torn", "of another training", "changed within"])
def test_a_damaged_state_costs_time_only_and_is_told(damage: str, tmp_path: Path) -> None:
    model = tiny_value()
    selection = selection_of(model, "int2-g32")
    path = tmp_path / "training.safetensors"
    if damage == "torn":
        path.write_bytes(b"\0" * 100)
    elif damage == "changed within":
        trained(model, selection, Env(resume=tmp_path))
        path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    else:
        other = {"rates": {"scales": 0.01}, "check_every": 2}
        trained(model, selection, Env(resume=tmp_path), **other)
    said: list[str] = []
    assert same(trained(model, selection), trained(model, selection, Env(resume=tmp_path, note=said.append)))
    assert len(said) == 1 and said[0].startswith("training began anew") and "training.safetensors" in said[0]
    said.clear()
    trained(model, selection, Env(resume=tmp_path / "nothing yet", note=said.append))
    assert not said


def test_no_better_means_unchanged() -> None:
    model = tiny_value()
    selection = selection_of(model, "int3-g32")
    exact = representable(model, selection)
    wild = {"rates": {"codes": 1.0, "scales": 0.5}}
    for source, settings in ((exact, SETTINGS), (model, SETTINGS | wild)):
        found = trained(source, selection, **settings)
        facts = found.meta["distilled"]
        assert facts["step_kept"] == 0 and facts["after"] == facts["before"]
        assert "kept its input" in facts["notes"][0]
        assert found.children == selection.children


def test_it_stops_when_the_held_out_windows_get_no_better() -> None:
    model = tiny_value()
    selection = selection_of(model, "int3-g32")
    wild = {"rates": {"codes": 1.0, "scales": 0.5}, "check_every": 1, "patience": 3}
    facts = trained(model, selection, **wild).meta["distilled"]
    curve = [check["held_out"] for check in facts["curve"][1:]]
    lowest = 1 + curve.index(min(curve))
    assert facts["steps"] == lowest + 3 < 12 and f"stopped after {lowest + 3} of 12 steps" in " ".join(facts["notes"])


def test_patience_counts_from_the_best_trained_student_not_from_the_input() -> None:
    """What rounds anew begins above the input, and may fall at every check."""
    spec = Distill(step="distill", check_every=1, patience=2)
    progress = Progress(curve=[{"step": 0, "held_out": 1.0}])
    enough = []
    for progress.step, loss in enumerate((9.0, 8.0, 7.0, 6.0, 6.5, 6.5), start=1):
        progress.losses = [loss]
        task: Any = SimpleNamespace(measure=lambda student, loss=loss: [{"tokens": 9.0, "loss": loss}], student=None)
        _check(progress, task, spec, 1.0)
        enough.append(_enough(spec, progress))
    assert enough == [False] * 5 + [True] and not progress.best


def test_training_again_starts_from_the_given_norms() -> None:
    model = tiny_value()
    once = trained(model, selection_of(model, "int2-g32"))
    twice = trained(model, once)
    assert twice.meta["distilled"]["before"] == once.meta["distilled"]["after"]


def test_divergence_stops_with_step_and_learning_rates() -> None:
    model = tiny_value()
    wild = {"rates": {"scales": 1e30}, "schedule": {"warmup": 0}}
    with pytest.raises(InputError, match=r"diverged\n.*step \d+, learning rates scales \d\.?\d*e\+\d\d"):
        trained(model, selection_of(model, "int3-g32"), **wild)


def test_too_few_windows_and_too_little_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_value()
    inputs = {"model": model, "selection": selection_of(model, "int3-g32"), "tokens": tiny_tokens(1, 16)}
    with pytest.raises(InputError, match="too few windows"):
        distill.run(Distill(step="distill"), inputs, Env())
    monkeypatch.setattr(distill, "available_bytes", lambda device: 1000)
    with pytest.raises(InputError, match=r"fit in memory(.|\n)*1000 bytes available\n.*wanted: \d+ bytes"):
        trained(model, inputs["selection"])


def _whole(model: Output, selection: Output, spec: Training | None) -> WholeTask:
    stream = Stream(model)
    pair = Pair(stream, Stream(overlay(model, selection)), all_blocks(stream))
    trainee = student(spec, model, selection, range(stream.blocks), True, "cpu")
    terms = Distill(step="distill").objective
    return WholeTask(terms, pair, trainee, trainee, TOKENS, [0, 1])  # type: ignore[arg-type]


def test_gradients_equal_finite_differences() -> None:
    """Of the training loss by one scale's and one norm's delta; fp32 files, so that nothing is rounded on the way."""
    model = tiny_value()
    task = _whole(model, selection_of(model, "int3-g32-asym"), Distill(step="distill"))
    scale = task.student.matrices["model.layers.1.mlp.up_proj"].frame.scales[0]
    object.__setattr__(scale, "dtype", torch.float32)
    task.loss([0, 3]).backward()
    for delta in (scale.delta_X, task.student.vectors[FINAL_NORM].delta_X):
        assert delta is not None and delta.grad is not None
        at = delta.grad.abs().flatten().argmax()
        sides = []
        for sign in (1, -1):
            with torch.no_grad():
                delta.view(-1)[at] = sign * 1e-2
                sides.append(task.loss([0, 3]).item())
                delta.view(-1)[at] = 0
        assert (sides[0] - sides[1]) / 2e-2 == pytest.approx(delta.grad.view(-1)[at].item(), rel=0.02)


@pytest.mark.parametrize("start", ["codes", "cell"])
def test_the_start_is_the_input_bit_for_bit(start: str) -> None:
    model = tiny_value(dtype=torch.bfloat16)
    selection = selection_of(model, "int5-g32-asym")
    spec = Distill.model_validate({"step": "distill", "codes": {"kind": "ste", "start": start}})
    task = _whole(model, selection, spec)
    for child in selection.children.values():
        for member in child.meta["members"]:
            expected = from_value(child, member).dequantize()
            for hard in (True, False):
                assert torch.equal(task.student.matrices[member].weight(hard), expected)
        for name, tensor in child.tensors.items():
            assert torch.equal(tensors_of(task.student)[name], tensor)
    assert training.mean(task.measure(task.student)) > 0


def test_stored_values_pass_gradients_straight_through() -> None:
    value = torch.tensor([1.001, -3.3], requires_grad=True)
    stored = as_stored(value, torch.bfloat16)
    assert torch.equal(stored, value.detach().bfloat16().float())
    stored.sum().backward()
    assert value.grad is not None and torch.equal(value.grad, torch.ones(2))


@pytest.mark.parametrize(("scope", "waiting"), [({"kind": "whole"}, 0), ({"kind": "blocks"}, 3 * 4 * 32 * 80 * 16)])
def test_memory_is_asked_for_the_windows_that_are_there(
    scope: dict[str, str], waiting: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """80 windows of 16 tokens, 16 of them held out, of a model 32 wide: no batch is larger than 64 of them."""
    model, asked = tiny_value(dtype=torch.bfloat16), list[int]()
    monkeypatch.setattr(distill, "check_fits", lambda needed, *others: asked.append(needed))
    spec = Distill.model_validate({"step": "distill", "scope": scope, "batch": 10**9, "held_out": 16})
    distill._check_memory(spec, model, TOKENS, Env())
    assert asked == [training_bytes(spec, model.meta, 64 * 16) + waiting]
