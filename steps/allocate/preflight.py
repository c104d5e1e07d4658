"""Everything about an allocation that can be refused before anything is computed. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from schemas.allocate import Allocator, Given, Pin
from schemas.budget import Budget
from schemas.errors import InputError
from schemas.pack import PackFormat
from steps.allocate import given
from steps.allocate.limits import Achievable, achievable, check_budget
from steps.allocate.pins import check_pins
from steps.allocate.sizing import Sizing, check_group_sizes
from steps.model.offers import Offer


def check(
    offered: Sequence[Offer],
    pack: PackFormat,
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, str],
    budget: Budget,
    pins: Sequence[Pin] = (),
    shard_bytes: int | None = None,
    metadata: int = 0,
    allocator: Allocator | None = None,
) -> Achievable:
    """The range of sizes within reach. InputError for groups that do not divide, bad pins, a budget below the range, or
    a plan that was given and does not fit.

    `shapes` and `dtypes` are of every parameter of the model, as in the meta of a model value; `metadata` is what
    `metadata_size` gives for it.
    """
    check_group_sizes((offer.unit, offer.formats) for offer in offered)
    units, formats = [offer.unit for offer in offered], {f.name: f for offer in offered for f in offer.formats}
    names = {offer.unit.name: tuple(f.name for f in offer.formats) for offer in offered}
    pinned = check_pins(units, list(formats.values()), pins)
    allowed = {unit: tuple(name for name in left if name in names[unit]) for unit, left in pinned.items()}
    _check_some_left(allowed, names)
    sizing = Sizing(tuple(units), formats, pack, config, shapes, dtypes, shard_bytes, names, metadata)
    check_budget(budget, sizing, allowed)
    if isinstance(allocator, Given):
        given.check(allocator.plan, sizing, allowed, budget)
    return achievable(sizing, allowed)


def _check_some_left(allowed: Mapping[str, tuple[str, ...]], offered: Mapping[str, tuple[str, ...]]) -> None:
    empty = [name for name, formats in allowed.items() if not formats]
    if empty:
        raise InputError(
            "pins leave a unit no format that it is offered",
            where=empty[0],
            wanted="at least one of " + ", ".join(offered[empty[0]]),
            fix="loosen the pins that match it, or offer it other formats",
        )
