"""Output error that is held against the size of the unit.

S = MSE N^-eta with eta = 0.3 and N the unit's weights: Sui et al., "BitsFusion" (arXiv:2406.04333). Differs from the
paper: MSE is that of the unit's own output on the calibration text, as the solver recorded it, not the whole network's
after training at each width.
"""

from __future__ import annotations

from collections.abc import Mapping

from schemas.sensitivity import SizeNormalised
from steps.sensitivity.recorded import changed, output_error
from steps.sensitivity.score import plain_score
from steps.step import Env, Output, Value


def run(spec: SizeNormalised, inputs: Mapping[str, Value], env: Env) -> dict[str, Output]:
    """`scores`: the mean squared error of one output of the unit, times (its weights)^-exponent."""
    scores = {}
    for name, item in inputs["candidates"].children.items():
        shapes = [facts["shape"] for facts in item.meta["members"].values()]
        outputs, weights = sum(rows for rows, _ in shapes), sum(rows * columns for rows, columns in shapes)
        scores[name] = plain_score(item.meta, output_error(item) / outputs / weights**spec.exponent, changed(item))
    return {"scores": Output(children=scores)}
