"""Builds as points: size against KL, predicted against measured KL."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ui.figures.svg import Frame, Scale, decades, linear, logarithmic, picture, tag, text, ticks
from ui.words import number, power


@dataclass(frozen=True)
class Dot:
    """A point; `low` and `high` are the interval of y, `class_` its colour, `link` where a click leads."""

    x: float
    y: float
    label: str
    class_: str = "other"
    low: float | None = None
    high: float | None = None
    link: str | None = None
    named: bool = False


def size_kl(dots: Sequence[Dot], width: float = 470, height: float = 300) -> Markup:
    """Size of the packed file against measured KL, which is on a logarithmic scale when it spans a decade."""
    frame = Frame(width, height, left=62)
    xs, ys = [d.x for d in dots], [v for d in dots for v in (d.y, d.low, d.high) if v is not None and v > 0]
    if not ys:
        return Markup("")
    room = (max(xs) - min(xs)) * 0.08 or max(xs) * 0.02
    x = linear(min(xs) - room, max(xs) + room, frame.x0, frame.x1)
    y, marks = _kl_axis(frame, ys)
    parts = frame.y_axis(y, marks, "KL, nats per token")
    parts += frame.x_axis(x, _sizes(min(xs) - room, max(xs) + room), "size of the packed file")
    return picture(width, height, "Size against measured KL", [*parts, *_points(dots, x, y, frame)])


def predicted_measured(dots: Sequence[Dot], width: float = 470, height: float = 300) -> Markup:
    """Predicted against measured KL of allocated plans; on the diagonal the prediction is right."""
    frame = Frame(width, height, left=62)
    values = [v for d in dots for v in (d.x, d.y, d.low, d.high) if v is not None and v > 0]
    if not values:
        return Markup("")
    low, high = min(values) * 0.85, max(values) * 1.15
    make = logarithmic if high / low > 10 else linear
    x, y = make(low, high, frame.x0, frame.x1), make(low, high, frame.y0, frame.y1)
    marks = [(v, number(v, 3)) for v in (decades(low, high) if high / low > 10 else ticks(low, high, 4))]
    parts = frame.y_axis(y, marks, "measured KL") + frame.x_axis(x, marks, "predicted KL")
    parts.append(tag("line", x1=x(low), y1=y(low), x2=x(high), y2=y(high), class_="diagonal"))
    parts.append(text(frame.x1 - 4, y(high) + 26, "measured = predicted", "faint", "end"))
    return picture(width, height, "Predicted against measured KL", [*parts, *_points(dots, x, y, frame)])


def _kl_axis(frame: Frame, ys: Sequence[float]) -> tuple[Scale, list[tuple[float, str]]]:
    if max(ys) / min(ys) > 12:
        low, high = min(ys) * 0.8, max(ys) * 1.25
        return logarithmic(low, high, frame.y0, frame.y1), [(v, power(v)) for v in decades(low, high)]
    high = max(ys) * 1.12
    return linear(0, high, frame.y0, frame.y1), [(v, number(v, 3)) for v in ticks(0, high, 5)]


def _sizes(low: float, high: float) -> list[tuple[float, str]]:
    """Marks with as many digits as it takes to tell them apart."""
    marks = ticks(low, high, 4)
    unit, scale = next((u, s) for u, s in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0)) if high >= s)
    step = marks[1] - marks[0] if len(marks) > 1 else scale
    digits = max(0, math.ceil(-math.log10(step / scale) - 1e-9))
    return [(v, f"{v / scale:.{digits}f} {unit}") for v in marks]


def _points(dots: Sequence[Dot], x: Scale, y: Scale, frame: Frame) -> list[Markup]:
    parts = []
    for dot in sorted(dots, key=lambda d: d.class_ != "other"):
        px, py = x(dot.x), y(dot.y)
        if dot.low is not None and dot.high is not None:
            parts.append(tag("line", x1=px, x2=px, y1=y(dot.low), y2=y(dot.high), class_="whisker"))
        mark = tag(
            "circle",
            tag("title", dot.label),
            cx=px,
            cy=py,
            r=5 if dot.class_ != "other" else 3.5,
            class_=f"point {dot.class_}",
        )
        parts.append(tag("a", mark, href=dot.link, aria_label=dot.label) if dot.link else mark)
    return parts + _labels([d for d in dots if d.named], x, y, frame)


def _labels(dots: Sequence[Dot], x: Scale, y: Scale, frame: Frame) -> list[Markup]:
    """Names beside their points, on the side that has room, apart from each other."""
    parts, taken = [], list[tuple[float, float]]()
    for dot in sorted(dots, key=lambda d: y(d.y)):
        px, py = x(dot.x), y(dot.y)
        while any(abs(py - ty) < 13 and abs(px - tx) < 120 for tx, ty in taken):
            py += 13
        taken.append((px, py))
        left = px > (frame.x0 + frame.x1) / 2
        parts.append(
            text(px - 10 if left else px + 10, py + 4, dot.label, f"end {dot.class_}", "end" if left else "start")
        )
    return parts
