"""Bits by block and module: a column per block, a row per module."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from markupsafe import Markup

from schemas.report import AllocationRow
from ui.figures.svg import picture, tag, text
from ui.words import bits_class, bits_of, format_label, number, place, size

WIDTH, ROW, LABELS = 960.0, 34.0, 118.0
FEWEST, MOST = 9.0, 140.0
"""Width of a cell: below the first a map grows beyond the page and scrolls."""
_NAME_FITS, _BITS_FIT = 44.0, 13.0


def heat_map(
    rows: Sequence[AllocationRow],
    changed: Collection[str] = (),
    width: float = WIDTH,
    label: str = "Bits by block and module",
) -> Markup:
    """The map, as wide as that if its cells allow; units in `changed` have a frame."""
    placed = [(place(row.unit), row) for row in rows]
    blocks = sorted({block for (block, _), _ in placed if block is not None})
    modules = list(dict.fromkeys(module for (_, module), _ in placed))
    cell = min(MOST, max(FEWEST, (width - LABELS) / max(len(blocks), 1)))
    row_height = ROW if len(modules) <= 12 else 14.0
    parts = [text(LABELS - 10, _y(i, row_height) + row_height / 2 + 3, m, anchor="end") for i, m in enumerate(modules)]
    for (block, module), row in placed:
        x = LABELS + (blocks.index(block) if block is not None else 0) * cell
        parts.append(_cell(row, x, _y(modules.index(module), row_height), cell, row_height, row.unit in changed))
    step = max(1, -(-26 // int(cell)))
    below = _y(len(modules), row_height)
    parts += [
        text(LABELS + (k + 0.5) * cell, below + 13, str(b), anchor="middle")
        for k, b in enumerate(blocks)
        if k % step == 0
    ]
    parts += [text(LABELS - 10, below + 13, "block", "name", "end")] if blocks else []
    return picture(LABELS + cell * max(len(blocks), 1) + 4, below + 20, label, parts, "fig heat")


def _y(row: int, height: float) -> float:
    return 2 + row * height


def _cell(row: AllocationRow, x: float, y: float, width: float, height: float, changed: bool) -> Markup:
    gap = 1.5 if width > 14 else 0.5
    about = f"{row.unit}: {row.format}, {size(row.bytes)}, predicted KL {number(row.score, 3)}"
    box = tag(
        "rect",
        tag("title", about),
        x=x + gap,
        y=y + gap,
        width=width - 2 * gap,
        height=height - 2 * gap,
        rx=3 if width > 14 else 0,
        class_=f"cell {bits_class(row.format)}" + (" changed" if changed else ""),
    )
    words = format_label(row.format) if width >= _NAME_FITS else number(bits_of(row.format), 2)
    if width < _BITS_FIT or height < 14:
        return box
    return box + text(x + width / 2, y + height / 2 + 3.5, words, f"on {bits_class(row.format)}", "middle")


def legend(rows: Sequence[AllocationRow]) -> list[tuple[str, str, int, int]]:
    """(class, format, units, bytes) of every format in use, from few bits to many."""
    names = sorted({row.format for row in rows}, key=lambda n: (bits_of(n) or 0, n))
    return [
        (bits_class(n), n, sum(r.format == n for r in rows), sum(r.bytes for r in rows if r.format == n)) for n in names
    ]
