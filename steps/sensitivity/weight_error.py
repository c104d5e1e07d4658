"""The error of a unit's weights alone: no text, no gradient.

It is the output error of a unit whose inputs are white and of one size in all units; HQQ (Badri and Shaji, 2023) and
other data-free methods minimise it or a robust form of it.
"""

from __future__ import annotations

from collections.abc import Mapping

from schemas.sensitivity import WeightError
from steps.sensitivity.recorded import changed, energies, squared_error, units_of
from steps.sensitivity.score import plain_score
from steps.step import Env, Output, Value


def run(spec: WeightError, inputs: Mapping[str, Value], env: Env) -> dict[str, Output]:
    """`scores`: ||dW||^2 over the unit's members."""
    energy = energies(inputs["model"], inputs["candidates"])
    scores = {
        name: plain_score(item.meta, squared_error(item, energy), changed(item))
        for name, _, item in units_of(inputs["model"], inputs["candidates"])
    }
    return {"scores": Output(children=scores)}
