"""Everything about an allocation that can be refused before anything is computed. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from schemas.allocate import Pin
from schemas.artifact import Unit
from schemas.budget import Budget
from schemas.pack import PackFormat
from schemas.quantize import Format
from steps.allocate.limits import Achievable, achievable, check_budget
from steps.allocate.pins import check_pins
from steps.allocate.sizing import Sizing, check_group_sizes


def check(
    units: Sequence[Unit],
    formats: Sequence[Format],
    pack: PackFormat,
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, str],
    budget: Budget,
    pins: Sequence[Pin] = (),
) -> Achievable:
    """The range of sizes within reach. InputError for groups that do not divide, bad pins or a budget below the range.

    `shapes` and `dtypes` are of every parameter of the model, as in the meta of a model value.
    """
    check_group_sizes(units, formats)
    allowed = check_pins(units, formats, pins)
    sizing = Sizing(tuple(units), {f.name: f for f in formats}, pack, config, shapes, dtypes)
    check_budget(budget, sizing, allowed)
    return achievable(sizing, allowed)
