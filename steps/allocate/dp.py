"""The exact Pareto dynamic program over all units in order: no solver, one limit, the oracle of the other allocators.

U units, C formats, S states.
"""

from __future__ import annotations

import numpy as np

from schemas.errors import InputError
from steps.allocate.lagrangian import Relaxed, priced
from steps.allocate.pareto import States, extend, frontier, origin, trace
from steps.allocate.problem import ROUNDING, Choice, Floats
from steps.allocate.program import Program

STATES = 2_000_000
"""Partial plans at which the program is given up: tens of bytes each per unit."""


def solve(program: Program, relaxed: Relaxed | None = None, incumbent: float = np.inf) -> Choice:
    """The plan of least value within one limit; of equals the lightest.

    With a relaxation and the value of some plan, partial plans that provably end above it are dropped; without them
    only what cannot fit or is beaten is dropped, and nothing is taken on trust. InputError when states run out.
    """
    value_UC, weight_UC = program.value_UC, program.weight_KUC[0]
    capacity = float(program.capacity_K[0])
    lightest_U = np.where(np.isfinite(value_UC), weight_UC, np.inf).min(axis=1)
    shed = _suffix_sums(lightest_U)
    price = 0.0 if relaxed is None else float(relaxed.price_K[0])
    rest = _suffix_sums(priced(program, np.array([price])).min(axis=1))
    ceiling = incumbent + ROUNDING * abs(incumbent)
    now, stages = origin(), list[tuple[int, States]]()
    for u in range(len(value_UC)):
        format_C = np.flatnonzero(np.isfinite(value_UC[u]))
        now = extend(now, weight_UC[u, format_C], value_UC[u, format_C], format_C)
        fits_S = now.weight_S + shed[u + 1] <= capacity
        reaches_S = now.value_S + price * (now.weight_S - capacity) + rest[u + 1] <= ceiling
        now = frontier(now.take(fits_S & reaches_S))
        if len(now.weight_S) > STATES:
            raise _too_many(u, len(value_UC))
        stages.append((u, now))
    return np.array([c for _, c in sorted(trace(stages, len(now.weight_S) - 1).items())], dtype=np.intp)


def _suffix_sums(per_unit: Floats) -> Floats:
    return np.concatenate([np.cumsum(per_unit[::-1])[::-1], [0.0]])


def _too_many(unit: int, units: int) -> InputError:
    return InputError(
        "the dynamic program has too many partial plans",
        where="allocator",
        got=f"more than {STATES} after {unit + 1} of {units} units",
        fix="choose allocator `ilp` or `lagrangian`",
    )
