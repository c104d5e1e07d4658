"""Quantize one unit to one format.

O outputs (of all members, stacked), I inputs, G groups per row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from schemas.artifact import Unit
from schemas.quantize import QuantizeUnit
from steps.ops.cholesky import FactorError
from steps.quantize.build import build_fit, build_solver
from steps.quantize.checks import check_groups, check_tensor
from steps.quantize.grids.affine import GridParams
from steps.quantize.qtensor import QuantizedTensor, item_meta
from steps.quantize.scale_dtype import scale_dtype
from steps.quantize.solvers.solved import Solved
from steps.step import Env, Output, Value


def run(spec: QuantizeUnit, inputs: Mapping[str, Value], env: Env) -> dict[str, Output]:
    """Fit grids, choose codes; the candidates item of (unit, format).

    Members share their input, hence their Hessian and its factor: their rows are stacked and solved in one sweep (rows
    never influence each other). Weights are taken in fp32; what comes back lies on the CPU.
    """
    unit = Unit.model_validate(inputs["model"].meta["unit"])
    check_groups(unit, spec.format)
    W_OI = _weights(unit, inputs["model"], env.device)
    H_II = _hessian(unit, inputs["statistics"], env.device)
    fit, solve = build_fit(spec.rounding.fit), build_solver(spec.rounding.solver)
    params = fit(W_OI, H_II.diagonal(), spec.format, scale_dtype(inputs["model"].meta["config"]))
    try:
        solved = solve(W_OI, H_II, params, env)
    except FactorError as error:
        raise FactorError(f"{unit.name}: {error}; calibrate on more text or raise the solver's damping") from error
    return {"candidates": _item(unit, W_OI, params, solved)}


def _weights(unit: Unit, model: Value, device: str) -> torch.Tensor:
    """The members' weights, checked and stacked by output, fp32."""
    found = []
    for member, shape in zip(unit.members, unit.shapes, strict=True):
        W_OI = model.tensors[f"{member}.weight"].to(device, torch.float32)
        check_tensor(W_OI, shape, f"{member}.weight")
        found.append(W_OI)
    return torch.cat(found)


def _hessian(unit: Unit, statistics: Value, device: str) -> torch.Tensor:
    """The unit's Hessian, checked."""
    name = f"{unit.statistics}.hessian"
    H_II = statistics.tensors[name].to(device)
    columns = unit.shapes[0][1]
    check_tensor(H_II, (columns, columns), f"{name} of block {unit.block}")
    return H_II


def _item(unit: Unit, W_OI: torch.Tensor, params: GridParams, solved: Solved) -> Output:
    """Cut the stack into members again."""
    tensors: dict[str, torch.Tensor] = {}
    members: dict[str, dict[str, Any]] = {}
    stop = 0
    for member, shape in zip(unit.members, unit.shapes, strict=True):
        start, stop = stop, stop + shape[0]
        grid, part = params.rows(start, stop), solved.rows(start, stop)
        quantized = QuantizedTensor(member, grid.format, part.codes_OI, grid.scale_OG, grid.zero_point_OG)
        tensors |= quantized.to_tensors()
        members[member] = _report(W_OI[start:stop], quantized, part)
    return Output(item_meta(unit.name, params.format, members), {name: t.cpu() for name, t in tensors.items()})


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
        "dead_inputs": solved.dead,
        "relative_error": math.sqrt(math.fsum(error_O.tolist()) / size) if size else 0.0,
    }
