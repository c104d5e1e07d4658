"""Values with their intervals: a bar for a table's cell, domains, positions."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from schemas.report import DomainRow, Interval, PositionRow
from ui.figures.svg import Frame, linear, path, picture, tag, text, ticks
from ui.words import number


def whisker(value: Interval, most: float, class_: str) -> Markup:
    """One value on a line from 0 to `most`, for a cell of a table whose other cells share `most`."""
    x = linear(0, most or 1, 4, 236)
    about = f"{number(value.value)}, 95 % interval {number(value.low)} to {number(value.high)}"
    parts = [
        tag("line", x1=x(0), x2=x(most or 1), y1=10, y2=10, class_="grid"),
        tag("rect", x=x(0), y=7, width=max(x(value.value) - x(0), 0), height=6, class_=f"bar {class_}", rx=1),
        tag("line", x1=x(value.low), x2=x(value.high), y1=10, y2=10, class_="whisker"),
        *(tag("line", x1=x(v), x2=x(v), y1=6, y2=14, class_="whisker") for v in (value.low, value.high)),
    ]
    return picture(240, 20, about, parts, "fig cellbar")


def domains(rows: Sequence[DomainRow]) -> Markup:
    """KL by domain: the build, and beside it the best uniform format."""
    most = max(each.high for row in rows for each in (row.kl, row.uniform) if each is not None) or 1.0
    width, left, row_height = 620.0, 190.0, 34.0
    x = linear(0, most, left, width - 60)
    parts = []
    for i, row in enumerate(rows):
        y = 6 + i * row_height
        parts.append(text(left - 10, y + 13, row.name[:28], anchor="end"))
        parts.append(text(left - 10, y + 25, f"{row.documents} documents", "faint", "end"))
        for offset, each, class_ in ((4, row.kl, "mixed"), (16, row.uniform, "uniform")):
            if each is not None:
                parts += _bar(each, x, y + offset, class_)
    label = "KL by domain: " + ", ".join(f"{row.name} {number(row.kl.value)}" for row in rows)
    return picture(width, 10 + len(rows) * row_height, label, parts)


def _bar(each: Interval, x: object, y: float, class_: str) -> list[Markup]:
    assert callable(x)
    return [
        tag("rect", x=x(0), y=y, width=x(each.value) - x(0), height=9, class_=f"bar {class_}", rx=1),
        tag("line", x1=x(each.low), x2=x(each.high), y1=y + 4.5, y2=y + 4.5, class_="whisker"),
        text(x(each.high) + 6, y + 8.5, number(each.value, 3)),
    ]


def positions(rows: Sequence[PositionRow]) -> Markup:
    """KL by position in the window, with its band; the best uniform format as a thin line."""
    frame = Frame(620, 220)
    last = max(row.last for row in rows)
    most = max(each.high for row in rows for each in (row.kl, row.uniform) if each is not None) or 1.0
    x, y = linear(0, last, frame.x0, frame.x1), linear(0, most * 1.05, frame.y0, frame.y1)
    middle = [(row.first + row.last) / 2 for row in rows]
    upper = [(x(m), y(row.kl.high)) for m, row in zip(middle, rows, strict=True)]
    lower = [(x(m), y(row.kl.low)) for m, row in zip(middle, rows, strict=True)]
    uniform = [(x(m), y(row.uniform.value)) for m, row in zip(middle, rows, strict=True) if row.uniform is not None]
    parts = frame.y_axis(y, [(v, number(v, 3)) for v in ticks(0, most * 1.05, 4)], "KL, nats per token")
    parts += frame.x_axis(x, [(v, f"{v:.0f}") for v in ticks(0, last, 6)], "position in the window")
    parts += [path([*upper, *reversed(lower)], "band mixed"), path(uniform, "line uniform")]
    parts += [path([(x(m), y(row.kl.value)) for m, row in zip(middle, rows, strict=True)], "line mixed")]
    return picture(620, 220, "KL by position in the window", parts)
