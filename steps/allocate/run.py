"""Allocate: read the cost table, choose one format per unit within the budget, and state the evidence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from schemas.allocate import Allocate
from steps.allocate.certificate import certificate
from steps.allocate.limits import Allowed, achievable, byte_limits, check_budget
from steps.allocate.neighbours import neighbours
from steps.allocate.pins import check_pins, matching
from steps.allocate.plan import Planned, plan
from steps.allocate.problem import Choice
from steps.allocate.sizing import Sizing, check_group_sizes
from steps.allocate.stability import resample
from steps.allocate.table import Table, read
from steps.pack.sizes import metadata_size
from steps.step import Env, Output, Value


def run(spec: Allocate, inputs: Mapping[str, Value], env: Env) -> dict[str, Output]:
    """inputs scores, candidates, model -> plan. Only metas are read, no tensor is loaded.

    InputError for scores that no plan should rest on, pins that match nothing or contradict each other, and budgets
    that cannot be met (with the achievable range).
    """
    table = read(inputs["scores"], inputs["candidates"], inputs["model"])
    sizing = sizing_of(table, spec, inputs["model"])
    check_group_sizes([(u, [table.formats[name] for name in offered(table)[u.name]]) for u in table.units])
    allowed = allowed_of(table, spec)
    check_budget(spec.budget, sizing, allowed)
    planned = plan(table, sizing, spec, allowed)
    limit = planned.baseline.limit_bytes
    size = planned.problem.bytes_of(planned.solution.choice_U) if limit is None else limit
    resampled = resample(planned.problem, size, planned.solution.relaxed, spec.bootstrap, spec.seed)
    evidence = certificate(planned, spec.allocator.kind, resampled, spec.seed)
    evidence |= _asked(spec, planned, sizing, allowed)
    evidence["notes"] = [*table.notes, *evidence["notes"]]
    return {"plan": Output(meta=_meta(planned, sizing, table, evidence))}


def sizing_of(table: Table, spec: Allocate, model: Value) -> Sizing:
    """The byte arithmetic for this model and file format."""
    meta = model.meta
    shapes = {name: tuple(shape) for name, shape in meta["shapes"].items()}
    return Sizing(
        table.units,
        table.formats,
        spec.pack,
        meta["config"],
        shapes,
        meta["dtypes"],
        spec.shard_bytes,
        offered(table),
        metadata_size(spec.pack, meta["config"], model.files),
    )


def offered(table: Table) -> dict[str, tuple[str, ...]]:
    """Unit -> the formats it has candidates of."""
    return {
        unit.name: tuple(name for j, name in enumerate(table.formats) if table.present_UC[i, j])
        for i, unit in enumerate(table.units)
    }


def allowed_of(table: Table, spec: Allocate) -> Allowed:
    """Unit -> formats that its pins leave and that it has candidates of."""
    names = list(table.formats)
    pinned = check_pins(table.units, list(table.formats.values()), spec.pins)
    return {
        unit.name: tuple(f for f in pinned[unit.name] if table.present_UC[i, names.index(f)])
        for i, unit in enumerate(table.units)
    }


def _asked(spec: Allocate, planned: Planned, sizing: Sizing, allowed: Allowed) -> dict[str, Any]:
    """What the budget and the pins said, in bytes and in units matched, and what could have been asked for."""
    whole, reach = planned.problem.plan_of(planned.solution.choice_U), achievable(sizing, allowed)
    return {
        "budget": [
            {"name": limit.field, "limit": limit.limit, "used": limit.used(whole)}
            for limit in byte_limits(spec.budget, sizing)
        ],
        "achievable": {
            "linear_bits_per_weight": list(reach.linear_bits_per_weight),
            "file_bits_per_weight": list(reach.file_bits_per_weight),
            "file_bytes": list(reach.file_bytes),
        },
        "pins": [
            {"units": pin.units, "matches": [u.name for u in matching(pin.units, sizing.units, "pins")]}
            for pin in spec.pins
        ],
    }


def _meta(planned: Planned, sizing: Sizing, table: Table, evidence: dict[str, Any]) -> dict[str, Any]:
    """The plan's meta: whole plans in model order, exact file sizes and predicted KL of each."""
    problem, best = planned.problem, planned.uniform
    choices = {
        "plan": planned.solution.choice_U,
        "uniform": None if best is None else best.choice_U,
        "greedy": planned.greedy_U,
    }
    plans = {name: _ordered(planned, choice_U, table) for name, choice_U in choices.items()}
    return {
        **plans,
        "uniform_format": None if best is None else best.format,
        "certificate": evidence,
        "bytes": {name: None if whole is None else sizing.file(whole) for name, whole in plans.items()},
        "predicted_kl": {name: None if c is None else problem.score_of(c) for name, c in choices.items()},
        "rows": _rows(plans["plan"] or {}, sizing, table),
        "neighbours": neighbours(problem, planned.solution.choice_U),
    }


def _ordered(planned: Planned, choice_U: Choice | None, table: Table) -> dict[str, str] | None:
    if choice_U is None:
        return None
    whole = planned.problem.plan_of(choice_U)
    return {unit.name: whole[unit.name] for unit in table.units}


def _rows(whole: Mapping[str, str], sizing: Sizing, table: Table) -> list[dict[str, Any]]:
    names = list(table.formats)
    return [
        {
            "unit": unit.name,
            "format": whole[unit.name],
            "bytes": sizing.unit(unit, whole[unit.name]),
            "score": float(table.score_UC[i, names.index(whole[unit.name])]),
        }
        for i, unit in enumerate(table.units)
    ]
