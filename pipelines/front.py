"""From finished builds and what they were compared with to the points of a front, and how predictions held along it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipelines.drive import Built
from pipelines.sweep import Asked, Comparison
from schemas.errors import InputError
from schemas.report import Measured, Report
from schemas.sweep import FrontPoint, Sweep, Trend
from schemas.verify import Verify

OURS = ("mixed", "allocated", "greedy")
"""Series that every build's own report has."""


def sweep_of(asked: Asked, reports: Sequence[Report], comparison: Comparison, built: Built) -> Sweep:
    """Everything about a sweep. InputError when a packed file has another size than was predicted."""
    for report in reports:
        _check_size(report)
    first = reports[0]
    return Sweep(
        recipe=first.recipe,
        model=first.model,
        over=asked.over,
        bits=asked.bits,
        builds=tuple(report.build_digest for report in reports),
        points=(*_of_builds(asked, reports), *_of_comparison(first, comparison, built)),
        trend=trend(reports),
        notes=tuple(_notes(asked, reports)),
    )


def _check_size(report: Report) -> None:
    if report.bytes.predicted != report.bytes.actual:
        raise InputError(
            "a packed file is not of the size that was predicted",
            where=report.packed.path,
            got=f"{report.bytes.actual} bytes",
            wanted=f"{report.bytes.predicted} bytes",
            fix="this is a fault in Bitsmith's byte arithmetic: report it with the recipe",
        )


def _of_builds(asked: Asked, reports: Sequence[Report]) -> Iterator[FrontPoint]:
    for bits, report in zip(asked.bits, reports, strict=True):
        for series in OURS:
            measured: Measured = getattr(report, series)
            predicted = report.predicted_kl if series == "allocated" else None
            yield _point(series, f"{bits:g}", bits, measured, predicted, report)


def _of_comparison(report: Report, comparison: Comparison, built: Built) -> Iterator[FrontPoint]:
    from steps.verify.bootstrap import draw, measured

    runner = comparison.build.runner
    spec = Verify.model_validate({"step": "verify"})
    for each in comparison.contenders:
        plan: Mapping[str, Any] = runner.store.artifacts.load(built.outputs[each.plan]["plan"]).meta
        rows = runner.store.artifacts.load(built.outputs[each.evaluation]["evaluation"]).meta["documents"]
        found = measured(rows, plan["bytes"]["plan"], draw(len(rows), spec.bootstrap, spec.seed))
        yield _point(each.series, each.label, each.bits, found, plan["predicted_kl"]["plan"], report)


def _point(
    series: str, label: str, bits: float | None, measured: Measured, predicted: float | None, report: Report
) -> FrontPoint:
    return FrontPoint(
        series=series,
        label=label,
        bits=bits,
        bytes=measured.bytes,
        bits_per_weight=report.bpw.total * measured.bytes / report.bytes.actual,
        kl=measured.kl,
        predicted_kl=predicted,
    )


def of_series(sweep: Sweep, series: str) -> list[FrontPoint]:
    """The points of a series by size."""
    return sorted((p for p in sweep.points if p.series == series), key=lambda p: p.bytes)


def best_uniform(sweep: Sweep, most: int) -> FrontPoint | None:
    """The uniform format that measures best among those of no more bytes."""
    return min((p for p in of_series(sweep, "uniform") if p.bytes <= most), key=lambda p: p.kl.value, default=None)


def over_uniform(sweep: Sweep) -> float | None:
    """Geometric mean over the budgets of KL(allocated) / KL(best uniform of no more bytes)."""
    ratios = []
    for point in of_series(sweep, "allocated"):
        best = best_uniform(sweep, point.bytes)
        if best is not None and point.kl.value > 0 and best.kl.value > 0:
            ratios.append(math.log(point.kl.value / best.kl.value))
    return math.exp(math.fsum(ratios) / len(ratios)) if ratios else None


def trend(reports: Sequence[Report]) -> Trend | None:
    """Least squares of log measured KL on log predicted KL; None with fewer than two different predictions."""
    pairs = [(r.predicted_kl, r.allocated.kl.value) for r in reports]
    if len({predicted for predicted, _ in pairs}) < 2 or min(min(pair) for pair in pairs) <= 0:
        return None
    logs = [(math.log(predicted), math.log(measured)) for predicted, measured in pairs]
    mean_x, mean_y = (math.fsum(values) / len(logs) for values in zip(*logs, strict=True))
    spread = math.fsum((x - mean_x) ** 2 for x, _ in logs)
    slope = math.fsum((x - mean_x) * (y - mean_y) for x, y in logs) / spread
    ratios = tuple(measured / predicted for predicted, measured in pairs)
    return Trend(slope=slope, factor=math.exp(mean_y - slope * mean_x), ratios=ratios)


def _notes(asked: Asked, reports: Sequence[Report]) -> Iterator[str]:
    """Budgets at which scores do not add up, gates that failed, plans that did not beat the uniform format."""
    for bits, report in zip(asked.bits, reports, strict=True):
        if report.fit is not None and not report.fit.holds:
            yield f"at {bits:g} bits scores do not add up: measured is {report.fit.ratio.value:.2f} times their sum"
        if failed := [gate.name for gate in report.gates if not gate.passed]:
            yield f"at {bits:g} bits gates failed: {', '.join(failed)}"
        for contrast in report.contrasts:
            if (contrast.first, contrast.second) == ("allocated", "uniform") and contrast.verdict != "better":
                yield f"at {bits:g} bits the plan against uniform {report.uniform_format}: {contrast.verdict}"
