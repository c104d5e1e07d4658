"""What a build and a plan look like in a terminal, a pipe or a log; colours only in a terminal."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from pipelines.show_evaluations import HEADS, domain_cells, position_lines, sample_lines
from pipelines.show_refined import refined_lines
from schemas.report import Contrast, Interval, Measured, Report
from steps.verify.loading import BY_BLOCKS
from steps.verify.show import gpu_lines

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_NARROWEST, _PIPE_WIDTH = 40, 100
_VERDICT_STYLE = {"better": "green", "worse": "red", "no difference": "yellow"}


def show_report(report: Report, *, file: TextIO | None = None, width: int | None = None) -> None:
    """Print a build report: sizes, what was measured with 95 % intervals, comparisons, gates, nodes, notes, places."""
    console = _console(file, width)
    _headline(console, report)
    console.print()
    console.print(_measured(report))
    console.print()
    for contrast in report.contrasts:
        console.print(_contrast(contrast), style=_VERDICT_STYLE[contrast.verdict], soft_wrap=False)
    for line in _facts(report):
        console.print(line)
    for line in sample_lines(report):
        console.print(line, no_wrap=True)
    domains = (_domains(report),) if report.domains else ()
    for table in (*domains, _gates(report), _nodes(report)):
        console.print()
        console.print(table)
    console.print()
    if report.standing is not None:
        word = "champion" if report.standing.champion else "not the champion"
        console.print(f"{word} of {report.recipe} when it was built: {report.standing.why}")
    for note in report.notes:
        console.print(f"note: {note}", style="yellow")
    console.print(_places(report))
    _write(console, file)


def show_plan(
    rows: Sequence[Mapping[str, object]],
    *,
    columns: Sequence[str] | None = None,
    title: str = "",
    file: TextIO | None = None,
    width: int | None = None,
) -> None:
    """Print rows as a table; columns are the keys in order of appearance unless given, numbers go right."""
    console = _console(file, width)
    names = list(columns or dict.fromkeys(key for row in rows for key in row))
    numbers = {n for n in names if all(isinstance(row.get(n), int | float | None) or row[n] == "" for row in rows)}
    table = _table(title, *((name, name in numbers) for name in names))
    for row in rows:
        table.add_row(*(_cell(row.get(name)) for name in names))
    console.print(table)
    _write(console, file)


def size(count: int) -> str:
    """Bytes for people, in decimal units."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{count} B" if unit == "B" else f"{value:.2f} {unit}"


def _headline(console: Console, report: Report) -> None:
    verdict = "passed" if report.passed else "FAILED"
    console.print(f"{report.recipe} on {report.model}: {verdict}", style="bold green" if report.passed else "bold red")
    actual, predicted = report.bytes.actual, report.bytes.predicted
    exact = "as predicted" if actual == predicted else f"predicted {predicted:,}, off by {actual - predicted:+,}"
    console.print(
        f"{report.bpw.linear:.4f} bits per weight over the linears, {report.bpw.total:.4f} over the whole file; "
        f"{actual:,} bytes ({exact})"
    )


def _measured(report: Report) -> Table:
    heads = (("size", True), ("bpw", True), ("KL", True), ("95 %", False), ("ppl", True), ("top-1", True))
    table = _table("", ("", False), *heads)
    rows: list[tuple[str, Measured | None]] = [
        ("original", report.original),
        ("mixed", report.mixed),
        ("allocated", report.allocated),
        (f"uniform {report.uniform_format}", report.uniform),
        ("greedy", report.greedy),
    ]
    for name, row in rows:
        if row is None:
            continue
        bpw = f"{report.bpw.total * row.bytes / report.bytes.actual:.3f}"
        spread = "" if row is report.original else f"±{(row.kl.high - row.kl.low) / 2:.5f}"
        kl = "0" if row is report.original else f"{row.kl.value:.5f}"
        style = "bold" if row is report.mixed else None
        cells = (size(row.bytes), bpw, kl, spread, f"{row.ppl.value:.3f}", f"{row.top1.value:.4f}")
        table.add_row(name, *cells, style=style)
    table.caption = "KL in nats per token; bpw of the whole file; allocated is the plan before any training"
    return table


def _domains(report: Report) -> Table:
    table = _table("by domain", ("domain", False), ("documents", True), ("tokens", True), *HEADS)
    for row in report.domains:
        table.add_row(row.name, _cell(row.documents), _cell(row.tokens), *domain_cells(row))
    return table


def _contrast(contrast: Contrast) -> str:
    return (
        f"{contrast.first} against {contrast.second}: {contrast.verdict}; "
        f"KL {_interval(contrast.difference, '+.5f')}, ratio {_interval(contrast.ratio, '.3f')}"
    )


def _facts(report: Report) -> list[str]:
    lines = [f"predicted KL of the plan {report.predicted_kl:.5f}, measured {report.allocated.kl.value:.5f}"]
    if (fit := report.fit) is not None:
        lines.append(
            f"on the text of the scores: predicted {fit.predicted.value:.5f}, measured {fit.measured.value:.5f}, "
            f"ratio {_interval(fit.ratio, '.3f')}: scores " + ("add up" if fit.holds else "do NOT add up")
        )
    for each in report.rounds:
        kept = "kept" if each.kept else "not kept"
        lines.append(
            f"round {each.round}: predicted {each.predicted_kl:.5f}, KL {_interval(each.measured, '.5f')} "
            f"on text held out for choosing; {kept}"
        )
    lines += certificate_lines(report.certificate)
    lines += refined_lines(report)
    if (seen := report.experts) is not None:
        lines.append(
            f"{seen.experts} quantized experts saw {seen.fewest:,} to a median of {seen.median:,} calibration tokens, "
            f"{seen.without_tokens} none at all"
        )
    lines += position_lines(report)
    if (speed := report.speed) is None:
        lines.append(f"loaded on {report.device}: speed was not measured, {BY_BLOCKS}")
    else:
        lines.append(
            f"loaded on {report.device}: {speed.prefill_tokens_per_second:.1f} tokens/s prefill, "
            f"{speed.decode_tokens_per_second:.1f} decode, peak memory {size(speed.peak_memory_bytes)}"
        )
        lines += gpu_lines(speed.model_dump())
    for other in report.also:
        exact = "as predicted" if other.bytes.actual == other.bytes.predicted else "NOT as predicted"
        lines.append(
            f"also {other.format}: {other.bytes.actual:,} bytes ({exact}), {other.bpw.linear:.4f} bits per weight over "
            f"the linears, KL {other.measured.kl.value:.5f}, gates " + ("ok" if other.passed else "FAILED")
        )
    return lines


def certificate_lines(certificate: Mapping[str, Any]) -> list[str]:
    """Why the plan can be believed: optimality, what binds, what more bytes buy, how firm it is."""
    lines = []
    if {"allocator", "objective", "bound", "gap"} <= certificate.keys():
        facts = (f"{key} {_cell(certificate[key])}" for key in ("objective", "bound", "gap"))
        lines.append(f"allocation by {certificate['allocator']}: {', '.join(facts)} ({certificate.get('proof', '')})")
    binding = [each["name"] for each in certificate.get("limits", ()) if each.get("binds")]
    price = certificate.get("shadow_price") or {}
    if binding:
        lines.append(f"binding: {', '.join(binding)}" + (f"; {price['text']}" if price.get("text") else ""))
    if rival := certificate.get("baselines", {}).get("random"):
        mean, best = _cell(rival["mean_score"]), _cell(rival["best_score"])
        lines.append(f"{rival['samples']} random plans of no more bytes: mean score {mean}, best {best}")
    if stability := certificate.get("stability"):
        agreement, resamples, documents = (stability[k] for k in ("agreement", "resamples", "documents"))
        lines.append(f"stability: {agreement:.0%} of formats stay over {resamples} resamples of {documents} documents")
    return lines


def _gates(report: Report) -> Table:
    table = _table("gates", ("gate", False), ("limit", True), ("measured", True), ("", False))
    for gate in report.gates:
        style = None if gate.passed else "red"
        table.add_row(gate.name, _cell(gate.limit), _cell(gate.value), "ok" if gate.passed else "FAILED", style=style)
    return table


def _nodes(report: Report) -> Table:
    heads = (("node", False), ("step", False), ("", False), ("computed", True), ("cached", True), ("seconds", True))
    table = _table(f"nodes, {report.seconds:.1f} s", *heads)
    for node in report.nodes:
        counts = (str(node.units_computed), str(node.units_cached), f"{node.seconds:.1f}")
        table.add_row(node.id, node.step, node.status, *counts, style="dim" if node.status == "cached" else None)
    return table


def _places(report: Report) -> Table:
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    rows = {
        "packed": report.packed.path,
        **{f"{other.format}": other.packed.path for other in report.also},
        "report": report.page,
        "build": report.build_digest,
        "MLflow run": report.mlflow_run_id,
        "Prefect run": report.prefect_flow_run_id,
    }
    for name, value in rows.items():
        if value:
            grid.add_row(name, value)
    return grid


def _interval(value: Interval, form: str) -> str:
    return f"{value.value:{form}} [{value.low:{form}}, {value.high:{form}}]"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _table(title: str, *columns: tuple[str, bool]) -> Table:
    """A table without vertical rules; each column is (head, whether it holds numbers)."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=title or None,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
    )
    for head, number in columns:
        table.add_column(head, justify="right" if number else "left", overflow="fold")
    return table


def _console(file: TextIO | None, width: int | None) -> Console:
    """A console that writes to memory as it would to `file`: `_write` then replaces what the encoding cannot say."""
    from rich.console import Console

    out = file or sys.stdout
    terminal = out.isatty()
    if width is None and not terminal:
        width = int(os.environ.get("COLUMNS") or 0) or _PIPE_WIDTH
    colour = terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    console = Console(
        file=io.StringIO(),
        width=max(width, _NARROWEST) if width is not None else None,
        force_terminal=colour,
        no_color=not colour,
        markup=False,
        emoji=False,
        highlight=False,
        legacy_windows=False,
    )
    return console


def _write(console: Console, file: TextIO | None) -> None:
    out = file or sys.stdout
    memory = console.file
    assert isinstance(memory, io.StringIO)
    encoding = getattr(out, "encoding", None) or "utf-8"
    text = "\n".join(line.rstrip() for line in memory.getvalue().split("\n"))
    if text.encode(encoding, "replace").decode(encoding) != text:
        text = text.translate({ord("─"): "-", ord("±"): "+-"}).encode(encoding, "replace").decode(encoding)
    out.write(text)
    out.flush()
