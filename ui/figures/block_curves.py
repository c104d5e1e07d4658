"""How the training of each block went, where blocks were trained one after the other: small ones, side by side."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from schemas.refined import DistilledBlock
from ui.figures.svg import linear, path, picture, tag, text
from ui.words import number

WIDTH, HEIGHT, PER_ROW = 160, 96, 6
INSET = 12


def block_curves(blocks: Sequence[DistilledBlock]) -> Markup:
    """The drawing: per block both losses over its steps, and what is left of its error; each has a scale of its own."""
    rows = -(-len(blocks) // PER_ROW)
    parts = [
        tag("g", *_small(block), transform=f"translate({i % PER_ROW * WIDTH} {i // PER_ROW * HEIGHT})")
        for i, block in enumerate(blocks)
    ]
    return picture(PER_ROW * WIDTH, rows * HEIGHT, "Loss over the steps of training, block by block", parts)


def _small(block: DistilledBlock) -> list[Markup]:
    held_out = [(p["step"], p["held_out"]) for p in block.curve if "held_out" in p]
    train = [(p["step"], p["train"]) for p in block.curve if "train" in p]
    left = f" × {number(block.after / block.before, 2)}" if block.step_kept and block.before else " as it was"
    about = f"block {block.first_block}: {number(block.before)} → {number(block.after)}, step {block.step_kept} kept"
    if block.gap is not None:
        about += f", held out less training {number(block.gap)}"
    parts = [tag("title", about), text(INSET, 14, f"block {block.first_block}", "name"), text(INSET + 58, 14, left)]
    losses = [loss for _, loss in (*held_out, *train)]
    if len(held_out) < 2:
        return parts
    x = linear(held_out[0][0], held_out[-1][0], INSET, WIDTH - INSET)
    y = linear(min(losses), max(losses), HEIGHT - INSET, 24)
    for points, class_ in ((train, "line greedy"), (held_out, "line mixed")):
        parts.append(path([(x(step), y(loss)) for step, loss in points], class_))
    return parts
