"""The quantize step: one unit, one format."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from linears import hessian, one_of_each, proxy, question, weights
from selections import fmt

from schemas.errors import InputError
from schemas.quantize import Fit, QuantizeUnit, Rounding, Solver
from steps.ops.cholesky import FactorError
from steps.quantize.grids.affine import GridParams
from steps.quantize.qtensor import from_value
from steps.quantize.unit import run
from steps.step import Env, Output

QKV = ((32, 64), (16, 64), (16, 64))
PARTS = [Rounding(fit=fit, solver=solver) for fit in one_of_each(Fit) for solver in one_of_each(Solver)]


def ask(inputs: dict[str, Output], name: str = "int3-g32", rounding: Rounding | None = None) -> Output:
    """The candidates item."""
    return run(QuantizeUnit(format=fmt(name), rounding=rounding or Rounding()), inputs, Env())["candidates"]


@pytest.mark.parametrize("rounding", PARTS, ids=lambda r: f"{r.fit.kind}-{r.solver.kind}")
@pytest.mark.parametrize("name", ["int2-g32", "int4-row-asym", "int8-g64-sym"])
def test_every_rounding_ends_in_quantized_tensors(name: str, rounding: Rounding) -> None:
    inputs = question(*QKV)
    item = ask(inputs, name, rounding)
    assert item.meta["unit"] == "layers.3.m" and item.meta["format"] == fmt(name).model_dump(mode="json")
    assert json.loads(json.dumps(item.meta, allow_nan=False)) == item.meta
    assert all(t.device.type == "cpu" and t.is_contiguous() for t in item.tensors.values())
    H_II = inputs["statistics"].tensors["m.hessian"]
    for member, shape in zip(item.meta["members"], QKV, strict=True):
        q, facts = from_value(item, member), item.meta["members"][member]
        W_OI = inputs["model"].tensors[f"{member}.weight"].float()
        assert q.shape == shape == tuple(facts["shape"]) and q.scale_OG.dtype == torch.bfloat16
        exact = proxy(W_OI, H_II, q.codes_OI, GridParams(q.format, q.scale_OG, q.zero_point_OG))
        assert facts["loss"] == pytest.approx(exact, rel=1e-3)
        relative = float((q.dequantize() - W_OI).double().norm() / W_OI.double().norm())
        assert facts["relative_error"] == pytest.approx(relative, rel=1e-6)
        assert facts["damping"] == (0.01 if rounding.solver.kind == "feedback" else 0)
        assert facts["dead_inputs"] == 0 and facts["solver_loss"] >= facts["loss"]


def test_equal_questions_have_equal_answers_and_memory_does_not_show() -> None:
    spec, env = QuantizeUnit(format=fmt("int3-g32"), rounding=Rounding()), Env()
    first = run(spec, question(*QKV), env)["candidates"]
    run(spec, question(*QKV, seed=9), env)
    again = run(spec, question(*QKV), env)["candidates"]
    assert first.meta == again.meta and first.tensors.keys() == again.tensors.keys()
    assert all(torch.equal(first.tensors[k], again.tensors[k]) for k in first.tensors)


def test_a_float16_model_has_float16_scales() -> None:
    item = ask(question((8, 32), config={"dtype": "float16"}))
    assert item.tensors["model.layers.3.m0.scale"].dtype == torch.float16


def test_groups_that_do_not_divide_the_row_are_refused() -> None:
    with pytest.raises(InputError) as caught:
        ask(question((8, 96)), "int4-g64")
    message = str(caught.value)
    assert "model.layers.3.m0.weight" in message and "rows of 96 weights" in message
    assert "one of int*-g32, int*-row, q8_0" in message and "int4-g64" in message


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_number_that_is_none_is_refused_by_name(value: float) -> None:
    W_OI, H_II = weights(16, 64, dtype=torch.bfloat16), hessian(64, dtype=torch.float32)
    W_OI[3, 5] = H_II[2, 2] = value
    for tensors, where in (({"m1": W_OI}, "model.layers.3.m1.weight"), ({"hessian": H_II}, "m.hessian of block 3")):
        with pytest.raises(InputError, match="NaN or infinity") as caught:
            ask(question(*QKV, **tensors))
        assert caught.value.where == where and caught.value.got.startswith("1 of ")


def test_a_tensor_of_the_wrong_shape_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="shape") as caught:
        ask(question(*QKV, hessian=torch.eye(32)))
    assert caught.value.where == "m.hessian of block 3"


def test_a_hessian_that_cannot_be_factored_is_an_error_that_names_the_unit() -> None:
    """Never a silent fall back to rounding to nearest, which needs no factor and still works."""
    inputs = question(*QKV, hessian=-torch.eye(64))
    with pytest.raises(FactorError, match=r"^layers\.3\.m: the Hessian is not positive definite"):
        ask(inputs)
    nearest: Any = {"kind": "rtn"}
    ask(inputs, rounding=Rounding(solver=nearest))


def test_a_dead_or_empty_layer_is_reported_and_safe() -> None:
    H_II = hessian(64, dtype=torch.float32)
    H_II[5], H_II[:, 5] = 0, 0
    item = ask(question(*QKV, hessian=H_II, m2=torch.zeros(16, 64)))
    members = list(item.meta["members"].values())
    assert [m["dead_inputs"] for m in members] == [1, 1, 1]
    assert members[2]["loss"] == members[2]["relative_error"] == 0
    assert not from_value(item, "model.layers.3.m2").dequantize().any()
