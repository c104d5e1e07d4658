"""Distillation: what may change, what must not, and that it never hurts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import tiny_tokens, tiny_value
from selections import modified_transformer, representable, selection_of, units_of

from schemas.distill import Distill
from schemas.errors import InputError
from steps.distill import run as distill
from steps.distill.objective import Teacher, held_out_kl, training_loss
from steps.distill.parameters import FINAL_NORM, as_stored, student, tensors_of
from steps.distill.schedule import split
from steps.model.positions import take
from steps.model.stream import Stream
from steps.model.whole import all_blocks
from steps.quantize.qtensor import QuantizedTensor
from steps.step import Env, Output
from steps.verify.metrics import compare_chunk

TOKENS = tiny_tokens(20, 16)
SETTINGS: dict[str, Any] = {"steps": 12, "batch": 4, "learning_rate": 0.01, "warmup": 2, "check_every": 4}


def trained(model: Output, selection: Output, **settings: Any) -> Output:
    spec = Distill(step="distill", **(SETTINGS | settings))
    return distill.run(spec, {"model": model, "selection": selection, "tokens": TOKENS}, Env())["selection"]


def mean_kl(model: Output, selection: Output, windows: list[int]) -> float:
    """By transformers' own model with the stored tensors loaded."""
    part = take(TOKENS, windows)
    with torch.no_grad():
        original, changed = (
            part.pick(modified_transformer(model, s)(input_ids=part.ids_NS.long()).logits)
            for s in (Output(), selection)
        )
    return compare_chunk(original, changed, torch.zeros(len(original), dtype=torch.int64)).kl_P.double().mean().item()


@pytest.mark.parametrize(("family", "form"), [("llama", "int2-g32"), ("qwen3", "int3-row-asym")])
def test_training_helps_and_what_is_reported_is_what_the_stored_tensors_do(family: str, form: str) -> None:
    model = tiny_value(family, dtype=torch.bfloat16)
    selection = selection_of(model, form)
    found = trained(model, selection)
    facts, held_out = found.meta["distilled"], split(20, 0.2, 0)[1]
    assert facts["kl_after"] < 0.95 * facts["kl_before"] and facts["step_kept"] > 0
    assert facts["kl_before"] == pytest.approx(mean_kl(model, selection, held_out), rel=1e-4)
    assert facts["kl_after"] == pytest.approx(mean_kl(model, found, held_out), rel=1e-4)
    assert facts["kl_after"] == min(check["kl"] for check in facts["curve"])
    assert [check["step"] for check in facts["curve"]] == [0, 4, 8, 12]


def test_codes_formats_and_bytes_stay_and_dtypes_are_those_of_the_file() -> None:
    model = tiny_value(dtype=torch.bfloat16)
    names = ["int2-g32", "int4-row", "int3-g32-asym", "int2-row-sym"]
    selection = selection_of(model, {u.name: names[i % 4] for i, u in enumerate(units_of(model))})
    found = trained(model, selection)
    assert found.meta["plan"] == selection.meta["plan"]
    for unit, child in selection.children.items():
        assert found.children[unit].meta == child.meta
        for name, tensor in child.tensors.items():
            other = found.children[unit].tensors[name]
            assert (other.dtype, other.shape) == (tensor.dtype, tensor.shape)
            assert torch.equal(other, tensor) != name.endswith(".scale")
    norms = found.children["norms"].tensors
    assert set(norms) == {name for name in model.tensors if name.endswith("norm.weight")}
    assert all(tensor.dtype == torch.bfloat16 for tensor in norms.values())


def test_equal_seeds_give_equal_bytes_and_no_global_generator_is_touched() -> None:
    model = tiny_value()
    selection = selection_of(model, "int2-g32")
    torch.manual_seed(1)
    first = trained(model, selection)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    second = trained(model, selection)
    assert torch.equal(state, torch.random.get_rng_state())
    assert first.meta == second.meta != trained(model, selection, seed=1).meta
    for unit, child in first.children.items():
        assert all(torch.equal(tensor, second.children[unit].tensors[n]) for n, tensor in child.tensors.items())


def test_no_better_means_unchanged() -> None:
    model = tiny_value()
    selection = selection_of(model, "int3-g32")
    exact = representable(model, selection)
    for source, settings in ((model, {"steps": 0}), (exact, {"learning_rate": 0.05})):
        found = trained(source, selection, **settings)
        facts = found.meta["distilled"]
        assert facts["step_kept"] == 0 and facts["kl_after"] == facts["kl_before"]
        assert found.children == selection.children


def test_training_again_starts_from_the_given_norms() -> None:
    model = tiny_value()
    once = trained(model, selection_of(model, "int2-g32"))
    twice = trained(model, once)
    assert twice.meta["distilled"]["kl_before"] == once.meta["distilled"]["kl_after"]


def test_divergence_stops_with_step_and_learning_rate() -> None:
    model = tiny_value()
    with pytest.raises(InputError, match=r"diverged\n.*step \d+, learning rate \d\.\d+e\+\d\d"):
        trained(model, selection_of(model, "int3-g32"), learning_rate=1e30, warmup=0)


def test_too_few_windows_and_too_little_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_value()
    inputs = {"model": model, "selection": selection_of(model, "int3-g32"), "tokens": tiny_tokens(1, 16)}
    with pytest.raises(InputError, match="too few windows"):
        distill.run(Distill(step="distill"), inputs, Env())
    monkeypatch.setattr(distill, "available_bytes", lambda device: 1000)
    with pytest.raises(InputError, match=r"fit in memory(.|\n)*1000 bytes available\n.*wanted: \d+ bytes"):
        trained(model, inputs["selection"])


def test_gradients_equal_finite_differences() -> None:
    """Of the training loss by one scale's and one norm's delta; fp32 files, so that nothing is rounded on the way."""
    model = tiny_value()
    selection = selection_of(model, "int3-g32-asym")
    parameters = student(model, selection, "cpu")
    name = "model.layers.1.mlp.up_proj.weight"
    scale = parameters.matrices[name].scale_OG
    object.__setattr__(scale, "dtype", torch.float32)
    stream = Stream(model)
    teacher, part = Teacher(stream, all_blocks(stream)), take(TOKENS, [0, 3])
    training_loss(teacher, parameters, part).backward()
    for delta in (scale.delta_X, parameters.norms[FINAL_NORM].delta_X):
        assert delta.grad is not None
        at = delta.grad.abs().flatten().argmax()
        sides = []
        for sign in (1, -1):
            with torch.no_grad():
                delta.view(-1)[at] = sign * 1e-2
                sides.append(training_loss(teacher, parameters, part).item())
                delta.view(-1)[at] = 0
        assert (sides[0] - sides[1]) / 2e-2 == pytest.approx(delta.grad.view(-1)[at].item(), rel=0.02)


def test_the_start_is_the_input_bit_for_bit() -> None:
    model = tiny_value(dtype=torch.bfloat16)
    selection = selection_of(model, "int5-g32-asym")
    parameters = student(model, selection, "cpu")
    for child in selection.children.values():
        for member in child.meta["members"]:
            expected = QuantizedTensor.from_value(child, member).dequantize()
            assert torch.equal(parameters.matrices[f"{member}.weight"].weight(), expected)
            assert torch.equal(tensors_of(parameters)[f"{member}.weight"], child.tensors[f"{member}.scale"])
    assert held_out_of(model, parameters) > 0


def held_out_of(model: Output, parameters: Any) -> float:
    stream, part = Stream(model), take(TOKENS, [0, 1])
    teacher = Teacher(stream, all_blocks(stream))
    return held_out_kl(teacher, parameters, [part], [teacher.hidden(part)])


def test_rounding_passes_gradients_straight_through() -> None:
    value = torch.tensor([1.001, -3.3], requires_grad=True)
    stored = as_stored(value, torch.bfloat16)
    assert torch.equal(stored, value.detach().bfloat16().float())
    stored.sum().backward()
    assert value.grad is not None and torch.equal(value.grad, torch.ones(2))
