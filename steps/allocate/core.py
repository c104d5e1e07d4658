"""Close the gap that the relaxation leaves: an exact dynamic program over the few units that can still change.

At the best price a plan's value is the bound plus the reduced costs of its choices plus price times unused budget. So
only choices with a reduced cost below the gap matter, units enter by rising reduced cost, and partial plans at or above
the best known gap are dropped (Pisinger, A minimal algorithm for the multiple-choice knapsack problem, EJOR 83, 1995).
U units, C formats, S states.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from steps.allocate.lagrangian import Relaxed
from steps.allocate.pareto import States, extend, frontier, origin, trace
from steps.allocate.problem import Choice, Floats
from steps.allocate.program import Program

STATES = 20_000
FEWEST_STATES = 2_000
WORK = 20_000_000
"""Partial plans kept at most: WORK / units, within these two. Dropping more weakens the bound, never its truth."""
NEGLIGIBLE = 1e-12
"""Improvements below this fraction of the value are rounding."""


@dataclass(frozen=True)
class _Deviations:
    """Every choice against the base: reduced cost and weight gained [U, C]; the base's unused budget; the price."""

    cost_UC: Floats
    gain_UC: Floats
    slack: float
    price: float


@dataclass(frozen=True)
class _Search:
    """Partial plans now; gap of the best completed one and where to trace it from; least cost ever dropped."""

    states: States
    gap: float
    stage: int = 0
    state: int = -1
    dropped: float = np.inf


def close(program: Program, relaxed: Relaxed, incumbent_U: Choice, states: int | None = None) -> tuple[Choice, float]:
    """(best plan, proven bound) for a program with one limit, from a feasible incumbent and never worse than it."""
    known = program.value(incumbent_U)
    tiny = NEGLIGIBLE * max(abs(relaxed.bound), abs(known))
    search = _Search(origin(), known - relaxed.bound)
    if search.gap <= tiny:
        return incumbent_U, relaxed.bound
    most = states or max(FEWEST_STATES, min(STATES, WORK // len(incumbent_U)))
    deviations = _deviations(program, relaxed)
    order, least = _core(deviations.cost_UC, relaxed.base_U, search.gap - tiny)
    reach = _reach(deviations, order, search.gap)
    stages: list[tuple[int, States]] = []
    for i, unit in enumerate(order):
        if least[i] >= search.gap - tiny:
            break
        search = _add(search, deviations, unit, reach[i + 1], tiny, most)
        stages.append((unit, search.states))
        search = _complete(search, deviations, len(stages))
    choice_U = relaxed.base_U.copy()
    for unit, fmt in trace(stages[: search.stage], max(search.state, 0)).items():
        choice_U[unit] = fmt
    better = search.state >= 0 and program.value(choice_U) <= known and program.fits(choice_U)
    return choice_U if better else incumbent_U, relaxed.bound + max(0.0, min(search.gap, search.dropped))


def _deviations(program: Program, relaxed: Relaxed) -> _Deviations:
    index, weight_UC, price = np.arange(len(relaxed.base_U)), program.weight_KUC[0], float(relaxed.price_K[0])
    priced_UC = program.value_UC + price * weight_UC
    return _Deviations(
        np.maximum(priced_UC - priced_UC[index, relaxed.base_U][:, None], 0.0),
        weight_UC - weight_UC[index, relaxed.base_U][:, None],
        float(program.capacity_K[0] - program.used(relaxed.base_U)[0]),
        price,
    )


def _core(cost_UC: Floats, base_U: Choice, gap: float) -> tuple[list[int], list[float]]:
    """Units with another choice cheaper than the gap, cheapest first, and those least costs."""
    other_UC = cost_UC.copy()
    other_UC[np.arange(len(base_U)), base_U] = np.inf
    least_U = other_UC.min(axis=1)
    order = np.argsort(least_U, kind="stable")
    order = order[least_U[order] < gap]
    return order.tolist(), least_U[order].tolist()


def _reach(deviations: _Deviations, order: list[int], gap: float) -> list[tuple[float, float]]:
    """(most weight that can still be shed, most that can still be gained) by the units from each place on."""
    inside_UC = np.where(deviations.cost_UC[order] < gap, deviations.gain_UC[order], 0.0)
    shed = np.concatenate([np.cumsum(inside_UC.min(axis=1)[::-1])[::-1], [0.0]])
    grow = np.concatenate([np.cumsum(inside_UC.max(axis=1)[::-1])[::-1], [0.0]])
    return list(zip(shed.tolist(), grow.tolist(), strict=True))


def _add(
    search: _Search, deviations: _Deviations, unit: int, reach: tuple[float, float], tiny: float, most: int
) -> _Search:
    """The states with one more unit, without those that cannot fit, cannot beat the best, or are beaten."""
    price, slack, gap = deviations.price, deviations.slack, search.gap - tiny
    format_C = np.flatnonzero(deviations.cost_UC[unit] < gap)
    gain_C = deviations.gain_UC[unit, format_C]
    states = extend(search.states, gain_C, deviations.cost_UC[unit, format_C] - price * gain_C, format_C)
    unused_S = np.maximum(slack - states.weight_S - reach[1], 0.0)
    cost_S = states.value_S + price * states.weight_S
    states = frontier(states.take((cost_S + price * unused_S < gap) & (states.weight_S + reach[0] <= slack)))
    if len(states.weight_S) <= most:
        return replace(search, states=states)
    cost_S = states.value_S + price * states.weight_S
    kept = np.sort(np.argpartition(cost_S, most)[:most])
    return replace(search, states=states.take(kept), dropped=min(search.dropped, float(np.delete(cost_S, kept).min())))


def _complete(search: _Search, deviations: _Deviations, stage: int) -> _Search:
    """Note the best plan among the states, with all other units at the base."""
    states, price, slack = search.states, deviations.price, deviations.slack
    total_S = np.where(states.weight_S <= slack, states.value_S + price * slack, np.inf)
    if not len(total_S) or total_S.min() >= search.gap:
        return search
    return replace(search, gap=float(total_S.min()), stage=stage, state=int(total_S.argmin()))
