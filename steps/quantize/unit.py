"""Quantize one unit to one format.

O outputs (of all members, stacked), I inputs, G groups per row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, assert_never

import torch

from schemas.artifact import Unit
from schemas.format import Affine, Ggml, Mixed, PerColumn
from schemas.quantize import QuantizeUnit
from steps.ops.cholesky import FactorError
from steps.quantize.affine import quantize_affine
from steps.quantize.checks import check_groups, check_tensor
from steps.quantize.ggml.quantize import quantize_ggml
from steps.quantize.mixed.quantize import quantize_mixed
from steps.quantize.qtensor import QuantizedTensor, item_meta
from steps.quantize.scale_dtype import scale_dtype
from steps.quantize.shared_inputs import coverage_of, hessian_of, row_weights, shared_inputs
from steps.quantize.solvers.solved import Solved
from steps.step import Env, Output, Value


def run(spec: QuantizeUnit, inputs: Mapping[str, Value], env: Env) -> dict[str, Output]:
    """Fit grids, choose codes; the candidates item of (unit, format).

    Beside the quantized tensors, `<member>.row_loss` fp32 [O] has the solver's loss of each output row.

    Members that share their input share its Hessian and its factor: their rows are stacked and solved in one sweep
    (rows never influence each other). Weights are taken in fp32; what comes back lies on the CPU.
    """
    unit = Unit.model_validate(inputs["model"].meta["unit"])
    check_groups(unit, spec.format)
    items = [_part(spec, part, inputs, env) for part in shared_inputs(unit)]
    members = {name: facts for item in items for name, facts in item.meta["members"].items()}
    tensors = {name: tensor for item in items for name, tensor in item.tensors.items()}
    return {"candidates": Output(item_meta(unit.name, spec.format, members), tensors)}


def _part(spec: QuantizeUnit, part: Unit, inputs: Mapping[str, Value], env: Env) -> Output:
    """The item of the members of a unit that share one input."""
    W_OI = _weights(part, inputs["model"], env.device)
    H_II = hessian_of(part, inputs["statistics"], env.device)
    try:
        quantized, solved = _quantize(spec, W_OI, H_II, scale_dtype(inputs["model"].meta["config"]), env)
    except FactorError as error:
        raise FactorError(f"{part.name}: {error}; calibrate on more text or raise the solver's damping") from error
    solved = solved.weighted(row_weights(part, inputs["statistics"], env.device))
    return _item(part, W_OI, quantized, solved, coverage_of(part, inputs["statistics"]))


def _quantize(
    spec: QuantizeUnit, W_OI: torch.Tensor, H_II: torch.Tensor, dtype: torch.dtype, env: Env
) -> tuple[QuantizedTensor, Solved]:
    """All rows in one format, and what that costs. Affine scales are stored in `dtype`."""
    fmt, rounding = spec.format, spec.rounding
    match fmt:
        case Affine():
            return quantize_affine(fmt, rounding, W_OI, H_II, dtype, env)
        case Ggml():
            return quantize_ggml(fmt, rounding, W_OI, H_II, env)
        case Mixed() | PerColumn():
            return quantize_mixed(fmt, rounding, W_OI, H_II, dtype, env)
        case _:
            assert_never(fmt)


def _weights(unit: Unit, model: Value, device: str) -> torch.Tensor:
    """The members' weights, checked and stacked by output, fp32."""
    found = []
    for member, shape in zip(unit.members, unit.shapes, strict=True):
        W_OI = model.tensors[f"{member}.weight"].to(device, torch.float32)
        check_tensor(W_OI, shape, f"{member}.weight")
        found.append(W_OI)
    return torch.cat(found)


def _item(
    unit: Unit, W_OI: torch.Tensor, whole: QuantizedTensor, solved: Solved, coverage: Mapping[str, Any]
) -> Output:
    """Cut the stack into members again."""
    tensors: dict[str, torch.Tensor] = {}
    members: dict[str, dict[str, Any]] = {}
    stop = 0
    for member, shape in zip(unit.members, unit.shapes, strict=True):
        start, stop = stop, stop + shape[0]
        quantized, part = whole.rows(member, start, stop), solved.rows(start, stop)
        tensors |= quantized.to_tensors() | {f"{member}.row_loss": part.loss_O.float()}
        members[member] = {**_report(W_OI[start:stop], quantized, part), **coverage}
    return Output(item_meta(unit.name, whole.format, members), {name: t.cpu() for name, t in tensors.items()})


def _report(W_OI: torch.Tensor, quantized: QuantizedTensor, solved: Solved) -> dict[str, Any]:
    """JSON facts of a member: losses as in Solved, relative_error = ||What - W|| / ||W||.

    Row sums are added up exactly (fsum), so that no order of summation shows.
    """
    error_O = (quantized.dequantize() - W_OI).square_().sum(1)
    size = math.fsum(W_OI.square().sum(1).tolist())
    return {
        "shape": list(quantized.shape),
        "loss": math.fsum(solved.loss_O.tolist()),
        "solver_loss": math.fsum(solved.solver_loss_O.tolist()),
        "damping": solved.damping,
        "act_order": solved.act_order,
        "dead_inputs": solved.dead,
        "relative_error": math.sqrt(math.fsum(error_O.tolist()) / size) if size else 0.0,
    }
