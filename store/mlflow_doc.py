"""The tables in store/MLFLOW.md, from the names in the code: `python -m store.mlflow_doc` writes them there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from store.lineage_facts import DOMAIN_METRICS, METRICS, SWEEP_METRICS, TAGS

DOC = Path(__file__).with_name("MLFLOW.md")
_TABLES = {"metrics": METRICS, "metrics by domain": DOMAIN_METRICS, "metrics of a sweep": SWEEP_METRICS, "tags": TAGS}


def with_tables(text: str) -> str:
    """The document with every table replaced; what is between `<!-- NAME -->` and `<!-- end -->` is ours."""
    for name, rows in _TABLES.items():
        head, begin, rest = text.partition(f"<!-- {name} -->\n")
        _, end, tail = rest.partition("<!-- end -->")
        assert begin and end, f"{DOC.name} has no place for {name}"
        text = head + begin + _table(rows) + end + tail
    return text


def _table(rows: Mapping[str, str]) -> str:
    lines = ["| name | what it is |", "|---|---|", *(f"| `{name}` | {what} |" for name, what in rows.items())]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    DOC.write_text(with_tables(DOC.read_text("utf-8")), "utf-8")
