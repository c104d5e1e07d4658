"""What the quantize step recorded of its candidates, by which they are scored without reading a tensor of theirs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch

from schemas.artifact import Unit, unit_name
from schemas.errors import InputError
from steps.model.structure import find_units
from steps.step import Value

Energy = Mapping[str, float]
"""Member -> ||W||^2."""


def recorded(item: Value, fact: str) -> dict[str, float]:
    """Member -> a fact of the candidate's meta. InputError when a member lacks it."""
    found = {}
    for member, facts in item.meta["members"].items():
        if fact not in facts:
            raise InputError(
                f"a candidate does not record its {fact}",
                where=f"{member} of {item.meta['unit']}",
                got=", ".join(sorted(facts)),
                wanted=fact,
                fix="make the candidates with a quantize node, or choose sensitivity `kl_probe` or `fisher`",
            )
        found[member] = float(facts[fact])
    return found


def output_error(item: Value) -> float:
    """E ||dW x||^2 over the calibration tokens: the mean squared error of the unit's output vector."""
    return math.fsum(recorded(item, "loss").values())


def changed(item: Value) -> bool:
    """Whether any weight of the candidate differs from the original."""
    return any(error != 0 for error in recorded(item, "relative_error").values())


def energies(model: Value, candidates: Value) -> dict[str, float]:
    """||W||^2 of every matrix that has candidates, in fp64; one is held at a time."""
    found = dict.fromkeys(member for item in candidates.children.values() for member in item.meta["members"])
    return {member: float(model.tensors[f"{member}.weight"].double().square().sum()) for member in found}


def squared_error(item: Value, energy: Energy) -> float:
    """||dW||^2 of the whole unit."""
    return math.fsum(error**2 * energy[member] for member, error in recorded(item, "relative_error").items())


def relative_squared_error(item: Value, energy: Energy) -> float:
    """||dW||^2 / ||W||^2 of the whole unit; 0 for a unit of zeros."""
    size = math.fsum(energy[member] for member in item.meta["members"])
    return squared_error(item, energy) / size if size else 0.0


def units_of(model: Value, candidates: Value) -> Iterator[tuple[str, Unit, Value]]:
    """(item name, unit, item) of every candidate; InputError for one of an unknown unit. Reads no candidate's tensors.

    In the order of the candidates.
    """
    names = {unit_name(name) for name in candidates.children}
    known = {unit.name: unit for unit in find_units(model.meta["config"], model.meta["shapes"], names)}
    for name, item in candidates.children.items():
        yield name, known[unit_name(name)], item


def row_loss(item: Value, member: str) -> torch.Tensor:
    """loss_O fp64: the solver's loss of each output row. InputError when the candidate lacks it."""
    name = f"{member}.row_loss"
    if name not in item.tensors:
        raise InputError(
            "a candidate does not record its loss by output row",
            where=f"{member} of {item.meta['unit']}",
            wanted=f"a tensor {name}",
            fix="make the candidates with a quantize node, or choose sensitivity `fisher`",
        )
    return item.tensors[name].double()
