"""Lagrangian relaxation: a price per limit makes units independent, and gives a bound that no plan can beat.

With one limit the best price is exact: it is the slope of the hull step at which the budget runs out (Everett 1963;
Kellerer, Pferschy and Pisinger, Knapsack Problems, 2004, section 11.2). U units, C formats, K limits, S hull steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from steps.allocate.problem import Choice, Floats
from steps.allocate.program import Program, lightest

SWEEPS = 12
"""Coordinate sweeps over the prices when there are several limits; any prices give a valid bound."""


@dataclass(frozen=True)
class Relaxed:
    """Prices in value per weight [K], the choice they imply (base), and a lower bound on the value of any plan."""

    price_K: Floats
    base_U: Choice
    bound: float

    def reduced(self, program: Program) -> Floats:
        """What each choice costs over the base at these prices, [U, C]: a plan's value is at least bound + its sum."""
        priced_UC = priced(program, self.price_K)
        return np.asarray(np.maximum(priced_UC - priced_UC.min(axis=1, keepdims=True), 0.0))


@dataclass(frozen=True)
class _Steps:
    """Steps along the hulls, best first: unit, target format, weight gained, value per weight (negative)."""

    unit_S: NDArray[np.intp]
    target_S: NDArray[np.intp]
    weight_S: Floats
    slope_S: Floats


def priced(program: Program, price_K: Floats) -> Floats:
    """Value plus price times weight, [U, C]."""
    total_UC = program.value_UC.copy()
    for price, weight_UC in zip(price_K, program.weight_KUC, strict=True):
        total_UC += price * weight_UC
    return total_UC


def _hull_steps(value_UC: Floats, weight_UC: Floats, start_U: Choice) -> _Steps:
    """Walk every unit's lower convex hull at once, from its lightest format by steepest descent."""
    index, here_U = np.arange(len(start_U)), start_U
    last_U = np.full(len(start_U), -np.inf)
    found: list[tuple[NDArray[np.intp], NDArray[np.intp], Floats, Floats]] = []
    for _ in range(value_UC.shape[1] - 1):
        gain_UC = weight_UC - weight_UC[index, here_U][:, None]
        drop_UC = value_UC - value_UC[index, here_U][:, None]
        good_UC = (gain_UC > 0) & (drop_UC < 0)
        slope_UC = np.where(good_UC, drop_UC / np.where(good_UC, gain_UC, 1.0), 0.0)
        next_U = slope_UC.argmin(axis=1)
        moved = np.flatnonzero(slope_UC[index, next_U] < 0)
        if not len(moved):
            break
        last_U[moved] = np.maximum(slope_UC[moved, next_U[moved]], last_U[moved])
        found.append((moved, next_U[moved], gain_UC[moved, next_U[moved]], last_U[moved]))
        here_U = here_U.copy()
        here_U[moved] = next_U[moved]
    unit_S, target_S, weight_S, slope_S = (
        np.concatenate(parts) if parts else np.zeros(0) for parts in (zip(*found, strict=True) if found else [()] * 4)
    )
    order = np.argsort(slope_S, kind="stable")
    return _Steps(unit_S[order].astype(np.intp), target_S[order].astype(np.intp), weight_S[order], slope_S[order])


def _one_price(value_UC: Floats, weight_UC: Floats, capacity: float, start_U: Choice) -> tuple[float, Choice]:
    """The best price of a single limit, and the choice of all hull steps that fit in full before it runs out."""
    steps = _hull_steps(value_UC, weight_UC, start_U)
    room = capacity - float(weight_UC[np.arange(len(start_U)), start_U].sum())
    taken = int(np.searchsorted(np.cumsum(steps.weight_S), room, side="right"))
    choice_U = start_U.copy()
    choice_U[steps.unit_S[:taken]] = steps.target_S[:taken]
    price = -float(steps.slope_S[taken]) if taken < len(steps.slope_S) else 0.0
    return price, choice_U


def bound_of(program: Program, price_K: Floats) -> float:
    """The Lagrangian bound of some prices >= 0: no plan within the limits has a smaller value."""
    least_U = priced(program, price_K).min(axis=1)
    return math.fsum([*least_U.tolist(), *(-price_K * program.capacity_K).tolist()])


def relax(program: Program) -> Relaxed:
    """Best prices, the choice they imply and the bound. With one limit the base choice is within it."""
    start_U = lightest(program)
    if len(program.capacity_K) == 1:
        price, base_U = _one_price(program.value_UC, program.weight_KUC[0], float(program.capacity_K[0]), start_U)
        price_K = np.array([price])
        return Relaxed(price_K, base_U, bound_of(program, price_K))
    price_K = _many_prices(program)
    return Relaxed(price_K, priced(program, price_K).argmin(axis=1), bound_of(program, price_K))


def _many_prices(program: Program) -> Floats:
    """Coordinate ascent of the bound: each limit in turn gets its exact price, the others' held."""
    price_K = np.zeros(len(program.capacity_K))
    best_K, best = price_K, bound_of(program, price_K)
    for _ in range(SWEEPS):
        before_K = price_K.copy()
        for k, capacity in enumerate(program.capacity_K):
            price_K = price_K.copy()
            price_K[k] = 0.0
            others = replace(program, value_UC=priced(program, price_K))
            price_K[k], _ = _one_price(others.value_UC, program.weight_KUC[k], float(capacity), lightest(others, k))
            bound = bound_of(program, price_K)
            if bound > best:
                best_K, best = price_K, bound
        if np.array_equal(before_K, price_K):
            break
    return best_K
