"""Refinement in words for the terminal."""

from __future__ import annotations

from schemas.refined import Distilled
from schemas.report import Report


def refined_lines(report: Report) -> list[str]:
    """What choosing codes again and training did; nothing for what was not asked for."""
    lines = []
    if (again := report.recoded) is not None:
        lines.append(
            f"codes chosen again: KL {again.before:.5f} -> {again.after:.5f} on held-out training text, "
            f"{again.moved:.1%} moved, curvature of {again.windows} windows"
        )
    return lines if report.distilled is None else [*lines, *_trained(report.distilled)]


def _trained(trained: Distilled) -> list[str]:
    """What refinement did, and how far the held-out loss is from the training loss: what was learned by heart."""
    apart = f" in {len(trained.blocks)} trainings of blocks" if trained.blocks else ""
    lines = [
        f"refined: {trained.measure} {trained.before:.5f} -> {trained.after:.5f} on held-out training text, "
        f"step {trained.step_kept} kept, {trained.tokens:,} tokens{apart}, used {trained.passes:.2g} times"
    ]
    if trained.gap is not None:
        lines.append(f"held out less training loss {trained.gap:+.5f}")
    gaps = [block.gap for block in trained.blocks if block.gap is not None]
    if gaps:
        lines.append(f"block by block: held out less training loss {min(gaps):+.5f} to {max(gaps):+.5f}")
    return lines
