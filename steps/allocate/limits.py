"""A budget as limits in bytes, what can be reached at all, and the error when a budget cannot be met. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from schemas.budget import Budget
from schemas.errors import InputError
from steps.allocate.problem import Row
from steps.allocate.rows import extra_rows
from steps.allocate.sizing import Sizing, exact_floor

Plan = Mapping[str, str]
Allowed = Mapping[str, tuple[str, ...]]
"""Unit name -> names of the formats it may have."""


@dataclass(frozen=True)
class ByteLimit:
    """One limit on size: the budget's field, its bytes, what it counts, and that count in the unit it was asked in."""

    field: str
    limit: int
    used: Callable[[Plan], int]
    read: Callable[[int], str]


@dataclass(frozen=True)
class Achievable:
    """From the smallest to the largest plan that pins allow."""

    linear_bits_per_weight: tuple[float, float]
    file_bits_per_weight: tuple[float, float]
    file_bytes: tuple[int, int]


def byte_limits(budget: Budget, sizing: Sizing) -> list[ByteLimit]:
    """The budget's limits on the size of the linears or of the whole file."""
    found = []
    if budget.bits_per_weight is not None:
        over, bits = budget.over, budget.bits_per_weight
        weights = sizing.linear_weights if over == "linears" else sizing.all_weights
        used = sizing.linears if over == "linears" else sizing.file
        found.append(
            ByteLimit("bits_per_weight", exact_floor(bits, weights), used, lambda n: f"{_bits(n, weights)} over {over}")
        )
    if budget.bytes is not None:
        found.append(ByteLimit("bytes", budget.bytes, sizing.file, lambda n: f"{n} bytes of file"))
    return found


def _bits(size: int, weights: int) -> str:
    """Bits per weight, rounded up, so that the number shown can be asked for."""
    return f"{math.ceil(8 * size / weights * 1e4) / 1e4:.4f} bits per weight"


def extremes(sizing: Sizing, allowed: Allowed) -> tuple[Plan, Plan]:
    """The smallest and the largest plan that pins allow."""
    low, high = {}, {}
    for unit in sizing.units:
        by_size = sorted((sizing.unit(unit, f), f) for f in allowed[unit.name])
        low[unit.name], high[unit.name] = by_size[0][1], by_size[-1][1]
    return low, high


def achievable(sizing: Sizing, allowed: Allowed) -> Achievable:
    """The range of sizes within reach of any plan."""
    low, high = extremes(sizing, allowed)
    linears, whole = (sizing.linears(low), sizing.linears(high)), (sizing.file(low), sizing.file(high))
    return Achievable(
        (8 * linears[0] / sizing.linear_weights, 8 * linears[1] / sizing.linear_weights),
        (8 * whole[0] / sizing.all_weights, 8 * whole[1] / sizing.all_weights),
        whole,
    )


def check_budget(budget: Budget, sizing: Sizing, allowed: Allowed) -> None:
    """InputError naming the limit and what is achievable, if the least of any plan is above some limit."""
    low, high = extremes(sizing, allowed)
    pinless = {u.name: tuple(f for f in sizing.formats if sizing.has(u, f)) for u in sizing.units}
    free, _ = extremes(sizing, pinless)
    _check_ends(budget, sizing, allowed)
    for limit in byte_limits(budget, sizing):
        if limit.used(low) > limit.limit:
            asked = str(budget.bytes) if limit.field == "bytes" else f"{budget.bits_per_weight} over {budget.over}"
            wanted = f"at least {limit.read(limit.used(low))} (at most {limit.read(limit.used(high))})"
            raise infeasible(f"budget.{limit.field}", asked, wanted, pinned=limit.used(free) <= limit.limit)
    for row in extra_rows(budget, sizing):
        least = _least(row, sizing, allowed)
        if least > row.limit:
            asked, wanted = f"{row.limit:.10g} {row.unit}", f"at least {least:.10g} {row.unit}"
            raise infeasible(f"budget.{row.name}", asked, wanted, pinned=_least(row, sizing, pinless) <= row.limit)


def _check_ends(budget: Budget, sizing: Sizing, allowed: Allowed) -> None:
    """A limit on the linears alone would let the allocator give embedding and head their largest format for nothing."""
    free = [u.name for u in sizing.units if u.use != "linear" and len(allowed[u.name]) > 1]
    if free and budget.bits_per_weight is not None and budget.over == "linears":
        raise InputError(
            "the budget does not count what the allocator may choose",
            where="budget.over",
            got=f"linears, with formats to choose for {', '.join(free)}",
            wanted="a limit on the whole file",
            fix="say `over: file`, give `bytes`, or fix the format with `embeddings: FORMAT` or a pin",
        )


def _least(row: Row, sizing: Sizing, allowed: Allowed) -> float:
    formats = list(sizing.formats)
    open_UC = np.array([[f in allowed[u.name] for f in formats] for u in sizing.units])
    return float(np.where(open_UC, row.cost_UC, np.inf).min(axis=1).sum())


def infeasible(where: str, got: str, wanted: str, pinned: bool = False) -> InputError:
    """The error of a budget that no plan meets."""
    return InputError(
        "no plan meets the budget",
        where=where,
        got=got,
        wanted=wanted,
        fix="loosen the pins: without them it can be met" if pinned else "raise this limit, or offer smaller formats",
    )
