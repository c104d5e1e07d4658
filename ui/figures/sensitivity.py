"""What each format does to each unit, alone: a line per format over the units, a ring where the plan is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from schemas.report import AllocationRow
from ui.figures.svg import Frame, Scale, decades, logarithmic, path, picture, tag, text
from ui.words import bits_class, bits_of, number, place, power

Scores = Mapping[str, Mapping[str, float]]
"""unit -> format -> score in nats per token."""

_MOST_DOTS = 600


def sensitivity(rows: Sequence[AllocationRow], scores: Scores | None = None) -> Markup:
    """The drawing; without `scores` only what the plan chose."""
    chosen = [(scores or {}).get(row.unit, {}).get(row.format, row.score) for row in rows]
    every = [s for unit in (scores or {}).values() for s in unit.values() if s > 0] + [s for s in chosen if s > 0]
    if not every:
        return Markup("")
    frame = Frame(960, 300, left=58, right=92, top=10, bottom=38)
    y = logarithmic(min(every) / 1.3, max(every) * 1.3, frame.y0, frame.y1)
    step = (frame.x1 - frame.x0) / max(len(rows), 1)

    def x(index: float) -> float:
        return frame.x0 + (index + 0.5) * step

    parts = frame.y_axis(
        y, [(v, power(v)) for v in decades(min(every) / 1.3, max(every) * 1.3)], "predicted KL, nats per token"
    )
    parts += _blocks(rows, frame, x)
    parts += _lines(rows, scores or {}, x, y, frame)
    for i, (row, score) in enumerate(zip(rows, chosen, strict=True)):
        if score > 0:
            about = tag("title", f"{row.unit}: {row.format}, predicted KL {number(score, 3)}")
            parts.append(tag("circle", about, cx=x(i), cy=y(score), r=4.5 if step > 6 else 2.5, class_="ring"))
    return picture(960, 300, "Predicted KL of every unit in every format, and the plan", parts)


def _blocks(rows: Sequence[AllocationRow], frame: Frame, x: Scale) -> list[Markup]:
    """Block numbers below, a faint line before each block."""
    firsts = [i for i, row in enumerate(rows) if i == 0 or place(row.unit)[0] != place(rows[i - 1].unit)[0]]
    each = -(-len(firsts) // 32)
    parts = frame.x_axis(x, [], "units, by block")
    for i in firsts[::each]:
        left = x(i - 0.5)
        parts.append(tag("line", x1=left, x2=left, y1=frame.y0, y2=frame.y1, class_="grid"))
        block = place(rows[i].unit)[0]
        parts.append(text(left + 3, frame.y0 + 14, str(block) if block is not None else "·"))
    return parts


def _lines(rows: Sequence[AllocationRow], scores: Scores, x: Scale, y: Scale, frame: Frame) -> list[Markup]:
    """A line per format, its name at the right end, names kept apart."""
    formats = sorted({name for unit in scores.values() for name in unit}, key=lambda n: (bits_of(n) or 0, n))
    parts, ends = [], []
    dots = len(rows) * len(formats) <= _MOST_DOTS
    for name in formats:
        at = [(x(i), y(s)) for i, row in enumerate(rows) if (s := scores.get(row.unit, {}).get(name, 0)) > 0]
        parts.append(path(at, f"line {bits_class(name)}"))
        if dots:
            parts += [tag("circle", cx=px, cy=py, r=1.8, class_=f"dot {bits_class(name)}") for px, py in at]
        if at:
            ends.append((at[-1][1], name))
    return parts + _names(ends, frame)


def _names(ends: list[tuple[float, str]], frame: Frame) -> list[Markup]:
    """Names beside the ends of lines, moved down where they would overlap and up again if they leave the frame."""
    places: list[float] = []
    for y, _ in sorted(ends):
        places.append(max(y, places[-1] + 12 if places else frame.y1 + 6))
    excess = max(0.0, places[-1] - frame.y0) if places else 0.0
    return [
        text(frame.x1 + 8, y - excess + 3, name, f"end {bits_class(name)}")
        for y, (_, name) in zip(places, sorted(ends), strict=True)
    ]
