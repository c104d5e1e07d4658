"""How training went: the held-out loss at every check, the loss of the steps between, the gap, the step kept."""

from __future__ import annotations

from markupsafe import Markup

from schemas.refined import Distilled
from ui.figures.svg import Frame, linear, path, picture, tag, text, ticks
from ui.words import number


def training_curve(trained: Distilled) -> Markup:
    """The drawing; checks that lack a value have no point."""
    held_out = [(p["step"], p["held_out"]) for p in trained.curve if "step" in p and "held_out" in p]
    train = [(p["step"], p["train"]) for p in trained.curve if "step" in p and "train" in p]
    if len(held_out) < 2:
        return Markup("")
    frame = Frame(960, 230, left=66, right=80)
    losses = [loss for _, loss in (*held_out, *train)]
    low, high = min(losses), max(losses)
    room = (high - low) * 0.08 or high * 0.1
    x = linear(held_out[0][0], held_out[-1][0], frame.x0, frame.x1)
    y = linear(low - room, high + room, frame.y0, frame.y1)
    parts = frame.y_axis(y, [(v, number(v, 3)) for v in ticks(low - room, high + room, 4)], trained.measure)
    parts += frame.x_axis(x, [(v, f"{v:.0f}") for v in ticks(held_out[0][0], held_out[-1][0], 8)], "step")
    if trained.gap is not None:
        parts.append(_between([(x(s), y(v)) for s, v in held_out[1:]], [(x(s), y(v)) for s, v in train]))
    for points, class_, name in ((train, "greedy", "training"), (held_out, "mixed", "held out")):
        if points:
            parts.append(path([(x(s), y(v)) for s, v in points], f"line {class_}"))
            parts.append(text(x(points[-1][0]) + 8, y(points[-1][1]) + 4, name, f"end {class_}"))
    kept = next((v for s, v in held_out if s == trained.step_kept), None)
    if kept is not None:
        about = tag("title", f"step {trained.step_kept} was kept: {number(kept)}")
        parts.append(tag("circle", about, cx=x(trained.step_kept), cy=y(kept), r=5, class_="ring"))
    return picture(960, 230, "Loss over the steps of training", parts)


def _between(upper: list[tuple[float, float]], lower: list[tuple[float, float]]) -> Markup:
    """The gap: the area between the two lines."""
    return path([*upper, *reversed(lower)], "gap")
