"""Tables of benchmarks as Markdown, printed or put between a script's markers in a README."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


def lines_of(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """A Markdown table; the columns are the keys of the first row."""
    head = list(rows[0])
    cells = [[row[name] for name in head] for row in rows]
    return ["| " + " | ".join(each) + " |" for each in (head, ["---"] * len(head), *cells)]


def put(lines: Sequence[str], readme: Path, script: str) -> None:
    """Replace what stands between `<!-- SCRIPT -->` and `<!-- end of SCRIPT -->`; ValueError where one is absent."""
    begin, end = f"<!-- {script} -->", f"<!-- end of {script} -->"
    text = readme.read_text("utf-8")
    if begin not in text or end not in text:
        raise ValueError(f"{readme}: no {begin} ... {end}")
    head, _, rest = text.partition(begin)
    readme.write_text("\n".join([head + begin, "", *lines, "", end + rest.partition(end)[2]]), "utf-8")
