"""A sweep in a terminal, a pipe or a log: one row per budget, one per uniform format, and what to think of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from pipelines.front import OURS, best_uniform, of_series, over_uniform
from pipelines.show import show_plan, size
from schemas.report import Report
from schemas.sweep import FrontPoint, Sweep


def show_front(
    sweep: Sweep, reports: Sequence[Report], *, file: TextIO | None = None, width: int | None = None
) -> None:
    """Print the front: budgets, predictions, uniform formats, and what they say as a whole."""
    pairs = list(zip(sweep.bits, reports, strict=True))
    title = f"{sweep.recipe} on {sweep.model}, bits per weight over the {sweep.over}; KL in nats per token"
    show_plan([_row(sweep, bits, report) for bits, report in pairs], title=title, file=file, width=width)
    print(file=file)
    show_plan([_prediction(bits, report) for bits, report in pairs], file=file, width=width)
    print(file=file)
    uniform = [
        {"one format for all": p.label, "size": size(p.bytes), "bpw": f"{p.bits_per_weight:.3f}", "KL": _kl(p)}
        for p in of_series(sweep, "uniform")
    ]
    show_plan(uniform, file=file, width=width)
    print(file=file)
    for line in sentences(sweep):
        print(line, file=file)


def _row(sweep: Sweep, bits: float, report: Report) -> dict[str, object]:
    """What one budget came to: KL of the plan before training beside that of other plans of no more bytes."""
    points = {series: _at(sweep, series, bits) for series in dict.fromkeys(p.series for p in sweep.points)}
    plan = points["allocated"]
    assert plan is not None
    best = best_uniform(sweep, plan.bytes)
    row: dict[str, object] = {"bits": f"{bits:g}", "size": size(report.mixed.bytes), "bpw": f"{report.bpw.total:.3f}"}
    if report.distilled is not None:
        row["trained"] = f"{report.mixed.kl.value:.5f}"
    row |= {
        "plan": _kl(plan),
        "best uniform": f"{best.label} {best.kl.value:.5f}" if best else "none fits",
        "ratio": f"{plan.kl.value / best.kl.value:.3f}" if best else "",
        "greedy": f"{report.greedy.kl.value:.5f}",
    }
    others = [s for s in points if s not in (*OURS, "uniform")]
    return row | {series: f"{point.kl.value:.5f}" if (point := points[series]) else "" for series in others}


def _prediction(bits: float, report: Report) -> dict[str, object]:
    """What was predicted, and what came of it on the text of the scores and on held-out text."""
    fit = report.fit
    row: dict[str, object] = {"bits": f"{bits:g}", "predicted KL": f"{report.predicted_kl:.5f}"}
    if fit is not None:
        span = f"{fit.ratio.value:.3f} [{fit.ratio.low:.3f}, {fit.ratio.high:.3f}]"
        row |= {"measured on the scored text": f"{fit.measured.value:.5f}", "over the sum of scores": span}
    measured = report.allocated.kl.value
    return row | {"held out": f"{measured:.5f}", "over predicted": f"{measured / report.predicted_kl:.3f}"}


def _at(sweep: Sweep, series: str, bits: float) -> FrontPoint | None:
    """The point of a series at a budget; of several random plans the median one."""
    found = sorted((p for p in sweep.points if p.series == series and p.bits == bits), key=lambda p: p.kl.value)
    return found[len(found) // 2] if found else None


def _kl(point: FrontPoint) -> str:
    return f"{point.kl.value:.5f} ±{(point.kl.high - point.kl.low) / 2:.5f}"


def sentences(sweep: Sweep) -> list[str]:
    """What the sweep says as a whole."""
    lines = []
    if (ratio := over_uniform(sweep)) is not None:
        lines.append(f"KL of the plans over that of the best uniform format of no more bytes: {ratio:.3f} on average")
    if (trend := sweep.trend) is not None:
        low, high = min(trend.ratios), max(trend.ratios)
        lines.append(
            f"measured KL = {trend.factor:.3f} x predicted ^ {trend.slope:.3f}; measured over predicted "
            f"{low:.3f} to {high:.3f}"
        )
    return [*lines, *(f"note: {note}" for note in sweep.notes)]
