"""The error of a unit's output, measured through the Hessian with the codes that the solver really chose.

The objective that GPTQ minimises (arXiv:2210.17323, eq. 1), and so the loss that every candidate carries. It knows
nothing about what comes after the unit: an error counts the same whether the model's predictions hang on it or not.
"""

from __future__ import annotations

from collections.abc import Mapping

from schemas.sensitivity import OutputError
from steps.sensitivity.recorded import changed, output_error
from steps.sensitivity.score import plain_score
from steps.step import Env, Output, Value


def run(spec: OutputError, inputs: Mapping[str, Value], env: Env) -> dict[str, Output]:
    """`scores`: E ||dW x||^2, the sum over the unit's outputs of the mean squared error per calibration token."""
    items = inputs["candidates"].children
    scores = {name: plain_score(item.meta, output_error(item), changed(item)) for name, item in items.items()}
    return {"scores": Output(children=scores)}
