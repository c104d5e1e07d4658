"""Random plans at no more bytes: what a plan is worth that knows nothing. S samples, U units, C formats, K limits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from steps.allocate.problem import Choice
from steps.allocate.program import Program


def plans(program: Program, start_U: Choice, samples: int, seed: int) -> NDArray[np.intp]:
    """Feasible plans [S, U]: units in random order each take a random format among those that still fit.

    The units not yet visited count with `start_U`, a feasible plan of small weight.
    """
    rng, units = np.random.default_rng(seed), len(start_U)
    order_SU = rng.permuted(np.tile(np.arange(units), (samples, 1)), axis=1)
    plan_SU = np.tile(start_U, (samples, 1))
    room_KS = np.repeat((program.capacity_K - program.used(start_U))[:, None], samples, axis=1)
    each = np.arange(samples)
    for u_S in order_SU.T:
        weight_KSC = program.weight_KUC[:, u_S]
        gain_KSC = weight_KSC - weight_KSC[:, each, plan_SU[each, u_S], None]
        fits_SC = np.isfinite(program.value_UC[u_S]) & (gain_KSC <= room_KS[:, :, None]).all(axis=0)
        drawn_S = np.where(fits_SC, rng.random(fits_SC.shape), -1.0).argmax(axis=1)
        chosen_S = np.where(fits_SC.any(axis=1), drawn_S, plan_SU[each, u_S])
        plan_SU[each, u_S] = chosen_S
        room_KS = room_KS - gain_KSC[:, each, chosen_S]
    return plan_SU
