"""SVG as escaped text: elements, scales, axes. Colours are classes of static/base.css, so that themes change them."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

Scale = Callable[[float], float]


def tag(name: str, *children: str | Markup, **attributes: object) -> Markup:
    """An element; everything that is not Markup is escaped. `class_` is class, `_` in names is `-`.

    Plain text until the end: a drawing of thousands of cells is on the way of a page.
    """
    pairs = [f' {k.rstrip("_").replace("_", "-")}="{_value(v)}"' for k, v in attributes.items() if v is not None]
    body = "".join([str(c) if isinstance(c, Markup) else html.escape(c) for c in children])
    return Markup(f"<{name}{''.join(pairs)}>{body}</{name}>")


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return html.escape(str(value))


def picture(width: float, height: float, label: str, children: Iterable[Markup], class_: str = "fig") -> Markup:
    """A drawing with a name for those who cannot see it."""
    return tag(
        "svg",
        *children,
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        role="img",
        aria_label=label,
        class_=class_,
        width=width,
        height=height,
    )


def text(x: float, y: float, words: str, class_: str = "", anchor: str = "start") -> Markup:
    """A line of text."""
    return tag("text", words, x=x, y=y, class_=class_ or None, text_anchor=None if anchor == "start" else anchor)


def path(points: Sequence[tuple[float, float]], class_: str) -> Markup:
    """A line through points."""
    steps = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return tag("path", d=f"M{steps}", class_=class_) if points else Markup("")


def linear(low: float, high: float, start: float, end: float) -> Scale:
    """From values to places; a range of no width is in the middle."""
    if high == low:
        return lambda value: (start + end) / 2
    return lambda value: start + (value - low) / (high - low) * (end - start)


def logarithmic(low: float, high: float, start: float, end: float) -> Scale:
    """The same, evenly in the logarithm; what is not above 0 is at the low end."""
    inner = linear(math.log10(low), math.log10(high), start, end)
    return lambda value: inner(math.log10(max(value, low)))


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers from low to high."""
    if not high > low:
        return [low]
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def decades(low: float, high: float) -> list[float]:
    """Powers of ten within a range."""
    found = [10.0**k for k in range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)]
    return found or [low, high]


@dataclass(frozen=True)
class Frame:
    """A plotting area: the drawing's size and the margins in it."""

    width: float
    height: float
    left: float = 56
    right: float = 14
    top: float = 12
    bottom: float = 40

    @property
    def x0(self) -> float:
        """Left edge."""
        return self.left

    @property
    def x1(self) -> float:
        """Right edge."""
        return self.width - self.right

    @property
    def y0(self) -> float:
        """Lower edge."""
        return self.height - self.bottom

    @property
    def y1(self) -> float:
        """Upper edge."""
        return self.top

    def x_axis(self, scale: Scale, marks: Sequence[tuple[float, str]], label: str) -> list[Markup]:
        """Marks and a name below."""
        parts = [tag("line", x1=self.x0, x2=self.x1, y1=self.y0, y2=self.y0, class_="axis")]
        for value, words in marks:
            x = scale(value)
            parts += [tag("line", x1=x, x2=x, y1=self.y0, y2=self.y0 + 4, class_="axis")]
            parts += [text(x, self.y0 + 16, words, anchor="middle")]
        return [*parts, text((self.x0 + self.x1) / 2, self.height - 6, label, "name", "middle")]

    def y_axis(self, scale: Scale, marks: Sequence[tuple[float, str]], label: str) -> list[Markup]:
        """Faint lines across, numbers at their left, a name above them."""
        parts = []
        for value, words in marks:
            y = scale(value)
            parts += [tag("line", x1=self.x0, x2=self.x1, y1=y, y2=y, class_="grid")]
            parts += [text(self.x0 - 7, y + 3.5, words, anchor="end")]
        turned = f"rotate(-90 13 {(self.y0 + self.y1) / 2:.0f})"
        middle = (self.y0 + self.y1) / 2
        name = tag("text", label, x=13, y=middle, class_="name", text_anchor="middle", transform=turned)
        return [*parts, name]
