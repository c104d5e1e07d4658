"""Numbers as people read them; the filters of the templates and the labels of the figures."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_BITS = re.compile(r"[a-z]+(\d+)")
_STEPS = (2, 3, 4, 5, 6, 8)
"""Bits that have a colour of their own (static/base.css)."""


def size(count: float | None) -> str:
    """Bytes in the unit that leaves one to three digits before the point."""
    if count is None:
        return "—"
    for scale, unit in _UNITS:
        if abs(count) >= scale:
            whole = len(str(int(abs(count) / scale)))
            return f"{count / scale:.{max(0, 3 - whole)}f} {unit}"
    return f"{count:.0f} B"


def number(value: float | None, digits: int = 4) -> str:
    """Significant digits, without an exponent where a reader does not need one."""
    if value is None:
        return "—"
    if value == 0:
        return "0"
    if abs(value) >= 10_000 and value == int(value):
        return f"{int(value):,}".replace("-", "−")
    text = f"{value:.{digits}g}"
    if "e" in text and 1e-7 < abs(value) < 1e12:
        text = f"{value:.{max(0, digits - 1 - _magnitude(value))}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    return text.replace("-", "−")


def measure(value: float | None, digits: int = 4) -> str:
    """The same with its last zeros: a measured value says how far it was measured."""
    if value is None or value == 0 or abs(value) >= 10.0**digits:
        return number(value, digits)
    return f"{value:.{max(0, digits - 1 - _magnitude(value))}f}".replace("-", "−")


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def power(value: float) -> str:
    """A power of ten for an axis."""
    exponent = _magnitude(value)
    return number(value, 1) if exponent >= -3 else "10" + str(exponent).translate(_RAISED)


def _magnitude(value: float) -> int:
    return int(f"{value:e}".partition("e")[2])


def signed(value: float | None, digits: int = 3) -> str:
    """With its sign."""
    if value is None:
        return "—"
    return f"+{measure(value, digits)}" if value > 0 else measure(value, digits)


def percent(ratio: float | None) -> str:
    """How far a ratio is from 1."""
    if ratio is None:
        return "—"
    change = 100 * (ratio - 1)
    return f"{change:+.0f} %".replace("-", "−") if abs(change) >= 0.5 else "0 %"


def duration(seconds: float | None) -> str:
    """Two units at most."""
    if seconds is None:
        return "—"
    if seconds < 0.95:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def when(moment: str | float | None) -> str:
    """A date and time in UTC, to the minute."""
    if moment is None:
        return "—"
    at = datetime.fromisoformat(moment) if isinstance(moment, str) else datetime.fromtimestamp(moment, UTC)
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M")


def short(digest: str) -> str:
    """The beginning of a digest, as the command line takes it."""
    return digest[:12]


def bits_of(name: str) -> float | None:
    """Nominal bits of a format's codes by its name (`int3-g64`, `q4_k`); None for a name that says none."""
    match = _BITS.match(name)
    return float(match[1]) if match else None


def bits_class(name: str) -> str:
    """The colour class of a format."""
    bits = bits_of(name)
    if bits is None:
        return "b0"
    return next((f"b{step}" for step in _STEPS if bits <= step), "b16")


def format_label(name: str) -> str:
    """A format's name, short enough for a cell."""
    return name.removeprefix("int").replace("-", "·").replace("_", "·")


def place(unit: str) -> tuple[int | None, str]:
    """`layers.3.self_attn.qkv` -> (3, `self_attn.qkv`); a unit outside the blocks has no number."""
    match = re.fullmatch(r"(?:model\.)?layers\.(\d+)(?:\.(.+))?", unit)
    return (int(match[1]), match[2] or "block") if match else (None, unit)


FILTERS: dict[str, Any] = {
    f.__name__: f
    for f in (size, number, measure, signed, percent, duration, when, short, bits_of, bits_class, format_label, place)
}
