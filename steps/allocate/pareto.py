"""The step that both dynamic programs repeat: add a unit to all states, drop what is beaten. S states, C formats."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steps.allocate.problem import Floats


@dataclass(frozen=True)
class States:
    """Partial plans: total weight and value, and the state and format each came from."""

    weight_S: Floats
    value_S: Floats
    parent_S: NDArray[np.intp]
    format_S: NDArray[np.intp]

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> States:
        """The states at an index or mask."""
        return States(self.weight_S[index], self.value_S[index], self.parent_S[index], self.format_S[index])


def origin() -> States:
    """The empty partial plan."""
    return States(np.zeros(1), np.zeros(1), np.zeros(1, dtype=np.intp), np.zeros(1, dtype=np.intp))


def extend(states: States, weight_C: Floats, value_C: Floats, format_C: NDArray[np.intp]) -> States:
    """Every state with every format of one more unit."""
    size = len(states.weight_S)
    return States(
        (weight_C[:, None] + states.weight_S).ravel(),
        (value_C[:, None] + states.value_S).ravel(),
        np.tile(np.arange(size), len(format_C)),
        np.repeat(format_C, size),
    )


def frontier(states: States) -> States:
    """States that no other state equals or beats in weight and value, by rising weight and falling value."""
    order = np.argsort(states.weight_S, kind="stable")
    weight_S, value_S = states.weight_S[order], states.value_S[order]
    least_S = np.concatenate([[np.inf], np.minimum.accumulate(value_S)[:-1]])
    kept = np.flatnonzero(value_S < least_S)
    last = np.concatenate([weight_S[kept][1:] != weight_S[kept][:-1], [True]]) if len(kept) else kept
    return states.take(order[kept[last]])


def trace(stages: list[tuple[int, States]], state: int) -> dict[int, int]:
    """Unit -> format of the state of that number after the last of the (unit, states) stages."""
    plan = {}
    for unit, states in reversed(stages):
        plan[unit] = int(states.format_S[state])
        state = int(states.parent_S[state])
    return plan
