"""Which formats each unit may have: patterns that match nothing, and pins that contradict each other, are errors.

Torch-free.
"""

from __future__ import annotations

from collections.abc import Sequence

from schemas.allocate import Pin
from schemas.artifact import Unit
from schemas.errors import InputError
from schemas.format import Format
from steps.model.matching import matching as matching


def check_pins(units: Sequence[Unit], formats: Sequence[Format], pins: Sequence[Pin]) -> dict[str, tuple[str, ...]]:
    """Unit name -> names of the formats its pins leave, in the order offered. InputError if none is left."""
    left = {u.name: [f for f in formats] for u in units}
    pinned: dict[str, list[str]] = {u.name: [] for u in units}
    for i, pin in enumerate(pins):
        where = f"pins[{i}]"
        _check_formats(pin, formats, where)
        for unit in matching(pin.units, units, f"{where}.units"):
            left[unit.name] = [f for f in left[unit.name] if _allows(pin, f)]
            pinned[unit.name].append(f"{where} ({pin.units})")
            if not left[unit.name]:
                raise InputError(
                    "pins leave a unit no format",
                    where=unit.name,
                    got=" and ".join(pinned[unit.name]),
                    wanted="at least one of " + ", ".join(f.name for f in formats),
                    fix="loosen one of these pins, or offer a format that satisfies them all",
                )
    return {name: tuple(f.name for f in found) for name, found in left.items()}


def _allows(pin: Pin, fmt: Format) -> bool:
    return (
        (not pin.formats or fmt in pin.formats)
        and fmt not in pin.exclude
        and (pin.min_bits is None or fmt.bits >= pin.min_bits)
        and (pin.max_bits is None or fmt.bits <= pin.max_bits)
    )


def _check_formats(pin: Pin, formats: Sequence[Format], where: str) -> None:
    for field, named in (("formats", pin.formats), ("exclude", pin.exclude)):
        unknown = [f.name for f in named if f not in formats]
        if unknown:
            raise InputError(
                "a pin names a format that is not offered",
                where=f"{where}.{field}",
                got=", ".join(unknown),
                wanted="formats among " + ", ".join(f.name for f in formats),
                fix="add it to the formats of the recipe, or change the pin",
            )
