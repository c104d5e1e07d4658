"""Units of several inputs, embeddings, and matrices with two uses: what they are solved for, and what their loss is."""

from __future__ import annotations

import pytest
import torch
from linears import hessian, weights
from selections import fmt

from schemas.artifact import Unit
from schemas.errors import InputError
from schemas.quantize import MinMax, Nearest, QuantizeUnit, Rounding
from steps.quantize.qtensor import from_value
from steps.quantize.shared_inputs import TIED_SHARE, shared_inputs
from steps.quantize.unit import run
from steps.step import Env, Output

SPEC = QuantizeUnit(format=fmt("int3-g32"), rounding=Rounding())
FREQUENCY = torch.tensor([0.5, 0.25, 0.25, *[0.0] * 13])


def unit(shapes: dict[str, tuple[int, int]], statistics: tuple[str, ...], **fields: str) -> Unit:
    sizes = tuple(shapes.values())
    return Unit(name="u", block=0, members=tuple(shapes), shapes=sizes, statistics=statistics, **fields)  # type: ignore[arg-type]


def quantized(found: Unit, statistics: Output, spec: QuantizeUnit = SPEC) -> Output:
    tensors = {
        f"{m}.weight": weights(*shape, seed=ord(m)) for m, shape in zip(found.members, found.shapes, strict=True)
    }
    model = Output({"unit": found.model_dump(), "config": {"dtype": "bfloat16"}}, tensors)
    return run(spec, {"model": model, "statistics": statistics}, Env())["candidates"]


def test_a_block_is_its_parts_each_with_its_own_hessian() -> None:
    shapes = {"a": (16, 32), "b": (16, 32), "c": (32, 64), "d": (8, 32)}
    tensors = {"x.hessian": hessian(32, 1, dtype=torch.float32), "y.hessian": hessian(64, 2, dtype=torch.float32)}
    statistics = Output({"groups": {"x": {"tokens": 7}, "y": {"tokens": 5, "own": 0.25}}}, tensors)
    whole = unit(shapes, ("x", "x", "y", "x"))
    assert [part.members for part in shared_inputs(whole)] == [("a", "b"), ("c",), ("d",)]
    found = quantized(whole, statistics)
    assert list(found.meta["members"]) == list(shapes)
    assert found.meta["members"]["a"]["tokens"] == 7 and found.meta["members"]["c"]["own"] == 0.25
    for part in shared_inputs(whole):
        alone = quantized(part, statistics)
        for member in part.members:
            assert alone.meta["members"][member] == found.meta["members"][member]
        assert all(torch.equal(tensor, found.tensors[name]) for name, tensor in alone.tensors.items())


def test_a_row_of_the_embedding_counts_as_often_as_its_token() -> None:
    found = quantized(
        unit({"e": (16, 32)}, ("embed_tokens",), use="embedding"),
        Output(tensors={"embed_tokens.frequency": FREQUENCY}),
        QuantizeUnit(format=fmt("int3-g32"), rounding=Rounding(fit=MinMax(kind="minmax"), solver=Nearest(kind="rtn"))),
    )
    error_O = (from_value(found, "e").dequantize().double() - weights(16, 32, seed=ord("e"))).square().sum(1)
    assert found.meta["members"]["e"]["loss"] == pytest.approx(float(error_O @ FREQUENCY.double()), rel=1e-5)
    torch.testing.assert_close(found.tensors["e.row_loss"].double(), error_O * FREQUENCY, rtol=1e-5, atol=1e-9)
    feedback = quantized(
        unit({"e": (16, 32)}, ("embed_tokens",), use="embedding"),
        Output(tensors={"embed_tokens.frequency": FREQUENCY}),
    )
    assert torch.equal(feedback.tensors["e.codes"], found.tensors["e.codes"])  # no input is coupled to another


def test_a_tied_matrix_answers_for_the_head_and_for_every_direction_of_the_embedding() -> None:
    H_II = hessian(32, 3, dtype=torch.float32)
    both_II = H_II + TIED_SHARE * H_II.diagonal().mean() * torch.eye(32)
    tied = quantized(unit({"e": (16, 32)}, ("lm_head",), use="tied"), Output(tensors={"lm_head.hessian": H_II}))
    linear = quantized(unit({"e": (16, 32)}, ("lm_head",)), Output(tensors={"lm_head.hessian": both_II}))
    assert all(torch.equal(tensor, linear.tensors[name]) for name, tensor in tied.tensors.items())
    assert tied.meta == linear.meta


def test_bad_frequencies_are_named() -> None:
    for frequency in (FREQUENCY[:5], FREQUENCY * float("nan")):
        with pytest.raises(InputError, match=r"embed_tokens\.frequency"):
            quantized(
                unit({"e": (16, 32)}, ("embed_tokens",), use="embedding"),
                Output(tensors={"embed_tokens.frequency": frequency}),
            )
