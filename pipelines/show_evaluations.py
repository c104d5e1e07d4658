"""Lines and cells for what a report has beside its verdict: domains, KL by position, samples to read."""

from __future__ import annotations

from collections.abc import Iterator

from schemas.report import DomainRow, Generation, Interval, Report

HEADS = (("KL", True), ("95 %", False), ("uniform", True), ("ppl", True), ("original", True), ("top-1", True))
SAMPLE_CHARACTERS = 72


def domain_cells(row: DomainRow) -> tuple[str, ...]:
    """One domain, in the order of HEADS."""
    return (
        f"{row.kl.value:.5f}",
        f"±{(row.kl.high - row.kl.low) / 2:.5f}",
        _value(row.uniform, ".5f"),
        _value(row.ppl, ".3f"),
        _value(row.original_ppl, ".3f"),
        _value(row.top1, ".4f"),
    )


def position_lines(report: Report) -> list[str]:
    """KL by position in the window, on one line."""
    spans = (f"{_span(row.first, row.last)} {row.kl.value:.5f}" for row in report.positions)
    return [f"KL by position in the window: {', '.join(spans)}"] if report.positions else []


def sample_lines(report: Report) -> Iterator[str]:
    """The end of each prompt and the beginning of what was written after it; control characters are taken out."""
    for each in report.generations:
        yield from ("", f"after     {_plain(each.prompt)[-SAMPLE_CHARACTERS:]}", *_continued(each))


def _continued(each: Generation) -> list[str]:
    original, mixed = _plain(each.original), _plain(each.mixed)
    if original == mixed:
        return [f"both      {original[:SAMPLE_CHARACTERS]}"]
    return [f"original  {original[:SAMPLE_CHARACTERS]}", f"mixed     {mixed[:SAMPLE_CHARACTERS]}"]


def _plain(text: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in " ".join(text.split()))


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _value(interval: Interval | None, form: str) -> str:
    return "-" if interval is None else f"{interval.value:{form}}"
