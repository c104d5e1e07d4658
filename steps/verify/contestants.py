"""Everything that is compared on the same tokens: the packed model, the original, the plan and its baselines.

B resamples, D documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from schemas.errors import InputError
from schemas.report import Contrast, Measured
from steps.pack.sizes import file_bytes
from steps.step import Value
from steps.verify.bootstrap import Rows, contrast

CONTRASTS = (("mixed", "uniform"), ("allocated", "uniform"), ("allocated", "greedy"))
AFTER_TRAINING = (("mixed", "allocated"),)
PLANNED = {"allocated": "plan", "uniform": "uniform", "greedy": "greedy"}
"""Evaluation port -> its key in the plan's `bytes`."""

Contrasts = Mapping[tuple[str, str], Contrast]


@dataclass(frozen=True)
class Contestant:
    """A model that was measured: per-document rows and the bytes of its weights file."""

    rows: Rows
    size: int


def contestants(inputs: Mapping[str, Value], rows: Mapping[str, Rows]) -> dict[str, Contestant]:
    """Everything that was measured on these tokens, with its size; `original` is the model in its stored dtypes."""
    model = inputs["model"]
    shapes = {name: tuple(shape) for name, shape in model.meta["shapes"].items()}
    original = file_bytes("compressed-tensors", model.meta["config"], shapes, model.meta["dtypes"], {})
    weights = [inputs["packed"].files[name] for name in inputs["packed"].meta["weights"]]
    found = {
        "original": Contestant(rows["original"], original),
        "mixed": Contestant(rows["documents"], sum(path.stat().st_size for path in weights)),
    }
    for port, key in PLANNED.items():
        if port in inputs and (port != "uniform" or has_uniform(inputs)):
            found[port] = Contestant(inputs[port].meta["documents"], _planned_bytes(inputs, port, key))
    return found


def contrasts_of(found: Mapping[str, Contestant], selection: Value, count_BD: torch.Tensor) -> Contrasts:
    """Paired contrasts of those that were measured; what training changed is one of them when there was any."""
    asked = CONTRASTS + (AFTER_TRAINING if selection.meta.get("distilled") else ())
    pairs = [(a, b) for a, b in asked if a in found and b in found]
    return {(a, b): contrast((a, b), found[a].rows, found[b].rows, count_BD) for a, b in pairs}


def against_uniform(contrasts: Contrasts, selection: Value) -> Contrast | None:
    """The plan before training against uniform; without training the packed model itself may stand for the plan."""
    untrained = ("allocated", "uniform")
    if untrained in contrasts or selection.meta.get("distilled"):
        return contrasts.get(untrained)
    return contrasts.get(("mixed", "uniform"))


def has_uniform(inputs: Mapping[str, Value]) -> bool:
    """Whether a uniform format fits the budget, as far as the plan says; without a plan it might."""
    return "plan" not in inputs or inputs["plan"].meta.get("uniform") is not None


def notes(found: Mapping[str, Contestant], has_uniform: bool, different: list[str]) -> list[str]:
    """What a reader must know about these numbers."""
    said = []
    if not has_uniform:
        said.append("no uniform format fits the budget, so there is no uniform baseline to beat")
    elif "uniform" not in found and "allocated" in found:  # a further file format is handed no baselines at all
        said.append("the uniform baseline was not measured")
    if different:
        said.append(f"{len(different)} loaded weights differ from what was packed; no number here is of the build")
    return said


def dumped(metrics: Mapping[str, Measured]) -> dict[str, Any]:
    """Measured models as JSON; those of the report that were not measured are None."""
    names = ("original", "mixed", *PLANNED)
    return {name: metrics[name].model_dump(mode="json") if name in metrics else None for name in names}


def _planned_bytes(inputs: Mapping[str, Value], port: str, key: str) -> int:
    """Predicted size of an evaluated plan's weights file."""
    size = inputs["plan"].meta["bytes"].get(key) if "plan" in inputs else None
    if size is None:
        raise InputError(
            f"the size of the `{port}` model is not known",
            where="verify",
            got="no plan" if "plan" not in inputs else f"a plan without bytes of {key}",
            wanted=f"a plan whose bytes include {key}",
            fix="wire the `plan` port of the verify node to the allocate node",
        )
    return int(size)
