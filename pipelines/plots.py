"""Three plots of a build as SVG: bits per unit, score per unit and format, size against KL.

The same report gives the same bytes: no dates, fixed ids, no global matplotlib state.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from schemas.format import read_format
from schemas.report import Measured, Report
from schemas.sweep import Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Scores = Mapping[str, Mapping[str, float]]
"""unit -> format -> score in nats per token."""

_STYLE = {"svg.hashsalt": "bitsmith", "svg.fonttype": "none", "font.size": 9, "font.family": "sans-serif"}
_MOST_LABELLED_BLOCKS = 48
"""Above this many blocks a heat map's cells are too low for text."""


class Point(NamedTuple):
    """One build of a sweep over budgets."""

    label: str
    bytes: int
    kl: float
    low: float
    high: float


def draw(
    report: Report, folder: Path, *, scores: Scores | None = None, points: Sequence[Point] = ()
) -> dict[str, Path]:
    """Write `bits.svg`, `size_kl.svg` and, when scores are given, `sensitivity.svg`; name -> path."""
    import matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    paths: dict[str, Path] = {}
    with matplotlib.rc_context(_STYLE):
        figures: dict[str, Figure] = {"bits": _bits(report), "size_kl": _size_kl(report, points)}
        if scores:
            figures["sensitivity"] = _sensitivity(report, scores)
        for name, figure in figures.items():
            paths[name] = folder / f"{name}.svg"
            figure.savefig(paths[name], format="svg", metadata={"Date": None, "Creator": "Bitsmith"})
    return paths


def draw_front(sweep: Sweep, folder: Path) -> list[Path]:
    """Write `front.svg` and `front.png`: size against KL on a logarithmic scale, with 95 % intervals."""
    import matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "front.svg", folder / "front.png"]
    with matplotlib.rc_context(_STYLE):
        figure = _front(sweep)
        figure.savefig(paths[0], format="svg", metadata={"Date": None, "Creator": "Bitsmith"})
        figure.savefig(paths[1], format="png", dpi=160, metadata={"Software": "Bitsmith"})
    return paths


def _front(sweep: Sweep) -> Figure:
    """A line per series with a budget, marks for uniform formats; what is lower and further left is better."""
    styles: dict[str, dict[str, Any]] = {
        "mixed": {"fmt": "D-", "color": "crimson", "label": "mixed, packed"},
        "allocated": {"fmt": "o-", "color": "darkorange", "label": "the plan, before training"},
        "greedy": {"fmt": "^:", "color": "seagreen", "label": "greedy"},
        "uniform": {"fmt": "s", "color": "steelblue", "label": "one format for all"},
        "random": {"fmt": "x", "color": "silver", "label": "random"},
    }
    figure, axes = _figure(7.2, 4.8)
    rows: dict[str, list[Point]] = {}
    for each in sweep.points:
        point = Point(each.label, each.bytes, each.kl.value, each.kl.low, each.kl.high)
        if each.kl.low > 0:
            rows.setdefault(each.series, []).append(point)
    if all(abs(a.kl - b.kl) < b.kl / 100 for a, b in zip(rows["mixed"], rows["allocated"], strict=False)):
        del rows["mixed"]  # nothing was trained: the packed files are the plans
    for series in sorted(rows, key=lambda s: (s in styles, s != "uniform")):
        points = sorted(rows[series], key=lambda p: p.bytes)
        _errors(axes, points, ms=4, lw=1, **styles.get(series, {"fmt": ".--", "label": f"by {series}"}))
    for series in ("uniform", "allocated"):
        for point in rows.get(series, ()):
            axes.annotate(point.label, (point.bytes / 1e6, point.kl), (5, 4), textcoords="offset points", fontsize=6.5)
    axes.set(yscale="log", xlabel="packed weights, MB", ylabel="mean KL(original || compressed), nats per token")
    axes.set_title(f"{sweep.recipe} on {sweep.model}: lower and further left is better")
    axes.grid(which="both", alpha=0.2)
    axes.legend(fontsize=8)
    return figure


def place(unit: str) -> tuple[int, str]:
    """`layers.3.self_attn.qkv` -> (3, `self_attn.qkv`); anything else is a module of block 0."""
    match = re.search(r"layers\.(\d+)\.(.+)", unit)
    return (int(match[1]), match[2]) if match else (0, unit)


def bits_of(name: str) -> float:
    """Nominal bits of a format's codes; NaN for a name that is no format."""
    try:
        return float(read_format(name).bits)
    except ValueError:
        return float("nan")


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _bits(report: Report) -> Figure:
    """Heat map: a row per block, a column per module, the colour is the bits, the text the format."""
    import numpy as np
    from matplotlib.colors import BoundaryNorm

    placed = [(*place(row.unit), row.format) for row in report.allocation]
    modules = list(dict.fromkeys(module for _, module, _ in placed))
    blocks = sorted({block for block, _, _ in placed})
    bits_BM = np.full((len(blocks), len(modules)), np.nan)
    figure, axes = _figure(1.8 + 1.1 * len(modules), 1.4 + min(0.3 * len(blocks), 12))
    for block, module, name in placed:
        row, column = blocks.index(block), modules.index(module)
        bits_BM[row, column] = bits_of(name)
        if len(blocks) <= _MOST_LABELLED_BLOCKS:
            colour = "white" if bits_BM[row, column] <= 4 else "black"
            axes.text(column, row, name.removeprefix("int"), ha="center", va="center", fontsize=7, color=colour)
    levels = (2, 3, 4, 5, 6, 8)
    norm = BoundaryNorm([1.5, 2.5, 3.5, 4.5, 5.5, 7, 8.5], 256)
    image = axes.imshow(bits_BM, aspect="auto", cmap="viridis", norm=norm, interpolation="nearest")
    figure.colorbar(image, ax=axes, label="bits per code", ticks=levels).ax.set_yticklabels([str(n) for n in levels])
    axes.set_xticks(range(len(modules)), modules, rotation=20, ha="right")
    step = -(-len(blocks) // 24)
    axes.set_yticks(range(0, len(blocks), step), [str(block) for block in blocks[::step]])
    axes.set(ylabel="block", title=f"{report.recipe}: {report.bpw.linear:.3f} bits per weight over the linears")
    return figure


def _sensitivity(report: Report, scores: Scores) -> Figure:
    """Score by unit, one line per format from few bits to many, a ring where the plan is."""
    from matplotlib import colormaps

    units = [row.unit for row in report.allocation]
    formats = sorted({name for row in scores.values() for name in row}, key=lambda name: (bits_of(name), name))
    figure, axes = _figure(min(4 + 0.12 * len(units), 16), 4.2)
    for k, name in enumerate(formats):
        at = [(x, scores[unit][name]) for x, unit in enumerate(units) if scores.get(unit, {}).get(name, 0) > 0]
        colour = colormaps["viridis"](k / max(len(formats) - 1, 1))
        axes.plot([x for x, _ in at], [y for _, y in at], "o-", ms=2.5, lw=0.6, color=colour, label=name)
    chosen = [(x, scores.get(row.unit, {}).get(row.format, row.score)) for x, row in enumerate(report.allocation)]
    ringed = [(x, y) for x, y in chosen if y > 0]
    axes.scatter(
        [x for x, _ in ringed], [y for _, y in ringed], s=28, facecolors="none", edgecolors="crimson", label="plan"
    )
    firsts = [x for x in range(len(units)) if x == 0 or place(units[x])[0] != place(units[x - 1])[0]]
    ticks = firsts[:: -(-len(firsts) // 24)]
    axes.set_xticks(ticks, [str(place(units[x])[0]) for x in ticks])
    axes.set(yscale="log", xlabel="units, by block", ylabel="predicted KL, nats per token")
    axes.set_title("What each format does to each unit, alone")
    axes.grid(axis="y", alpha=0.25)
    axes.legend(fontsize=7, ncols=1, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def _size_kl(report: Report, points: Sequence[Point]) -> Figure:
    """Size against KL with 95 % intervals: the build, its plan before training, its baselines, a sweep."""
    figure, axes = _figure(6.4, 4.2)
    uniform = f"uniform {report.uniform_format}"
    rows: list[tuple[str, Measured | None, str, str]] = [
        ("mixed, packed", report.mixed, "D", "crimson"),
        ("allocated, before training", report.allocated, "o", "darkorange"),
        (uniform, report.uniform, "s", "steelblue"),
        ("greedy", report.greedy, "^", "seagreen"),
    ]
    if points:
        line = sorted(points, key=lambda point: point.bytes)
        _errors(axes, line, fmt=".-", color="grey", lw=0.8, label="sweep")
        for point in line:
            axes.annotate(point.label, (point.bytes / 1e6, point.kl), (4, 4), textcoords="offset points", fontsize=7)
    for label, measured, marker, colour in rows:
        if measured is not None:
            kl = measured.kl
            point = Point(label, measured.bytes, kl.value, kl.low, kl.high)
            _errors(axes, [point], fmt=marker, color=colour, ms=6, label=label)
    axes.set(xlabel="packed weights, MB", ylabel="mean KL(original || compressed), nats per token")
    axes.set_title(f"{report.recipe} on {report.model}")
    axes.margins(0.15)
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(useOffset=False)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    return figure


def _errors(axes: Axes, points: Sequence[Point], **style: Any) -> None:
    """Points with their intervals; an interval that excludes its value (rounding) is drawn up to it."""
    down = [max(point.kl - point.low, 0) for point in points]
    rise = [max(point.high - point.kl, 0) for point in points]
    axes.errorbar([p.bytes / 1e6 for p in points], [p.kl for p in points], yerr=[down, rise], capsize=3, **style)
