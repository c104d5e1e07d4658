"""Greedy by marginal gain: from the smallest plan up, always the step that removes most damage per byte.

The baseline that a mixed build is compared with, and the fill that ends the relaxation. U units, C formats, K limits.
"""

from __future__ import annotations

import heapq

import numpy as np

from steps.allocate.lagrangian import relax
from steps.allocate.problem import Choice, Floats
from steps.allocate.program import Program, lightest

_Step = tuple[float, int, int]
"""(value per relative weight, unit, format), so that the best step is the least."""


def solve(program: Program) -> Choice | None:
    """Greedy from the lightest plan; None when no obvious start is within several limits at once.

    With one limit the steps up to the first overshoot are the hull steps of the relaxation, taken at once.
    """
    if len(program.capacity_K) == 1:
        start_U = lightest(program)
        return fill(program, relax(program).base_U) if program.fits(start_U) else None
    start = feasible_start(program)
    return None if start is None else fill(program, start)


def feasible_start(program: Program) -> Choice | None:
    """The lightest choice under the first limit, under the sum of all relative weights, or under another limit."""
    share_UC = (program.weight_KUC * _scale(program)[:, None, None]).sum(axis=0)
    blend_U = np.where(np.isfinite(program.value_UC), share_UC, np.inf).argmin(axis=1)
    others = (lightest(program, k) for k in range(1, len(program.capacity_K)))
    return next((c for c in (lightest(program), blend_U, *others) if program.fits(c)), None)


def fill(program: Program, start_U: Choice) -> Choice:
    """Take improving steps by falling gain per weight while they fit.

    A step that does not fit is skipped and others are still tried: stopping at the first overshoot wastes budget.
    """
    choice, room_K = start_U.tolist(), program.capacity_K - program.used(start_U)
    value, weight, scale = program.value_UC, program.weight_KUC, _scale(program)
    heap = _first_steps(program, start_U, room_K)
    heapq.heapify(heap)
    while heap:
        _, u, c = heapq.heappop(heap)
        gain_K = weight[:, u, c] - weight[:, u, choice[u]]
        if (gain_K <= room_K).all():
            choice[u], room_K = c, room_K - gain_K
        gain_KC = weight[:, u] - weight[:, u, choice[u], None]
        ratio_C = _ratio(value[u] - value[u, choice[u]], gain_KC, room_K[:, None], scale[:, None])
        if ratio_C.min() < np.inf:
            heapq.heappush(heap, (float(ratio_C.min()), u, int(ratio_C.argmin())))
    return np.array(choice, dtype=np.intp)


def _scale(program: Program) -> Floats:
    """Reciprocals of the limits, so that weights of different units can be added."""
    return 1.0 / np.maximum(program.capacity_K, 1e-300)


def _ratio(drop: Floats, gain_K: Floats, room_K: Floats, scale_K: Floats) -> Floats:
    """Value per relative weight of each step: negative, -inf if it costs nothing, inf if useless or too heavy."""
    cost = (np.maximum(gain_K, 0.0) * scale_K).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = drop / cost
    return np.where((drop < 0) & (gain_K <= room_K).all(axis=0), ratio, np.inf)


def _first_steps(program: Program, choice_U: Choice, room_K: Floats) -> list[_Step]:
    """The best step that fits now of every unit that has one."""
    index = np.arange(len(choice_U))
    gain_KUC = program.weight_KUC - program.weight_KUC[:, index, choice_U][:, :, None]
    drop_UC = program.value_UC - program.value_UC[index, choice_U][:, None]
    ratio_UC = _ratio(drop_UC, gain_KUC, room_K[:, None, None], _scale(program)[:, None, None])
    best_U = ratio_UC.argmin(axis=1)
    best = ratio_UC[index, best_U]
    units = np.flatnonzero(best < np.inf)
    return list(zip(best[units].tolist(), units.tolist(), best_U[units].tolist(), strict=True))
