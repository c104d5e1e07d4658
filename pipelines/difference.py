"""What one build has that an earlier one of the same recipe has not: as Markdown, for a Prefect artifact."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from schemas.report import AllocationRow, NodeRow, Report

SHOWN = 40
"""Units listed one by one; a reader of more wants the page."""


def difference(report: Report, before: Report | None) -> str:
    """What changed, what was computed for it, the plan and the metrics, and how the build stands."""
    told = [f"# {report.recipe}: {headline(report, before)}", "", *_metrics(report, before), ""]
    if before is not None:
        told += ["## What changed", "", *_changed(report, before), ""]
        told += ["## Plan", "", *_plan(report.allocation, before.allocation), ""]
    told += ["## What was computed", "", *_computed(report.nodes), ""]
    told += [f"- {note}" for note in report.notes]
    return "\n".join(told)


def headline(report: Report, before: Report | None) -> str:
    """One line: gates, place, KL and bytes against the build before."""
    gates = "gates passed" if report.passed else f"gates failed ({', '.join(_failed(report))})"
    place = "" if report.standing is None else "; champion" if report.standing.champion else "; not the champion"
    why = f", {report.standing.why}" if report.standing else ""
    moved = ""
    if before is not None:
        kl, size = report.mixed.kl.value - before.mixed.kl.value, report.bytes.actual - before.bytes.actual
        moved = f"; against the build before: KL {kl:+.5f}, {size:+,} bytes"
    return f"{gates}{place}{why}{moved}"


def _failed(report: Report) -> list[str]:
    return [gate.name for gate in report.gates if not gate.passed]


def _metrics(report: Report, before: Report | None) -> Iterator[str]:
    old = _facts(before) if before is not None else {}
    yield from ("| | now | before | difference |", "|---|--:|--:|--:|")
    for name, (now, form) in _facts(report).items():
        then, gap = (f"{old[name][0]:{form}}", f"{now - old[name][0]:+{form}}") if name in old else ("", "")
        yield f"| {name} | {now:{form}} | {then} | {gap} |"


def _facts(report: Report) -> dict[str, tuple[float, str]]:
    """Name -> value and how it is written."""
    return {
        "KL": (report.mixed.kl.value, ".5f"),
        "KL of the plan before training": (report.allocated.kl.value, ".5f"),
        "predicted KL": (report.predicted_kl, ".5f"),
        "perplexity": (report.mixed.ppl.value, ".3f"),
        "perplexity of the original": (report.original.ppl.value, ".3f"),
        "top-1": (report.mixed.top1.value, ".4f"),
        "bytes": (report.bytes.actual, ",.0f"),
        "bits per weight over the linears": (report.bpw.linear, ".4f"),
    }


def _changed(report: Report, before: Report) -> Iterator[str]:
    """Sources whose content changed, and libraries; what else made a node run again is `bitsmith explain`."""
    old = {row.id: row for row in before.nodes}
    for row in report.nodes:
        if row.step in ("model", "text") and row.id in old and row.outputs != old[row.id].outputs:
            yield f"- the content of `{row.id}`: {_digest(old[row.id])} -> {_digest(row)}"
    if report.recipe_digest != before.recipe_digest:
        yield f"- the recipe: {before.recipe_digest[:12]} -> {report.recipe_digest[:12]}"
    for name in sorted(report.libraries.keys() | before.libraries.keys()):
        then, now = before.libraries.get(name, "absent"), report.libraries.get(name, "absent")
        if then != now:
            yield f"- {name}: {then} -> {now}"
    again = [row.id for row in report.nodes if row.id in old and row.outputs != old[row.id].outputs]
    yield f"- other outputs than before: {', '.join(again) or 'none'}"


def _digest(row: NodeRow) -> str:
    return next(iter(row.outputs.values()))[:12]


def _plan(now: Sequence[AllocationRow], then: Sequence[AllocationRow]) -> Iterator[str]:
    old, new = {row.unit: row for row in then}, {row.unit: row for row in now}
    moved = [u for u in dict.fromkeys([*old, *new]) if u not in old or u not in new or old[u].format != new[u].format]
    if not moved:
        yield "Every unit has the format that it had."
        return
    yield f"{len(moved)} of {len(new)} units have another format."
    yield from ("", "| unit | before | now | bytes |", "|---|---|---|--:|")
    for unit in moved[:SHOWN]:
        a, b = old.get(unit), new.get(unit)
        size = (b.bytes if b else 0) - (a.bytes if a else 0)
        yield f"| {unit} | {a.format if a else '-'} | {b.format if b else '-'} | {size:+,} |"
    if len(moved) > SHOWN:
        yield f"| {len(moved) - SHOWN} more | | | |"


def _computed(nodes: Sequence[NodeRow]) -> Iterator[str]:
    at_work = [row for row in nodes if row.units_computed]
    if not at_work:
        yield "Nothing: every trace hit."
        return
    yield from ("| node | computed | found | seconds |", "|---|--:|--:|--:|")
    yield from (f"| {row.id} | {row.units_computed} | {row.units_cached} | {row.seconds:.1f} |" for row in at_work)
