"""The built-in English text: documentation that ships with CPython, split by document.

    python -m pipelines.demo.corpus      # rewrites calibrate.jsonl and evaluate.jsonl beside this file

A document is one topic of `pydoc_data.topics`, or all docstrings of one standard-library module. A docstring that
occurs twice is kept once, so that no text stands on both sides of a split. The split depends on the document's name
alone; training text is regenerated when the demo model is trained and is not shipped.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

Split = Literal["train", "calibrate", "evaluate"]
MIN_DOCSTRING_CHARS = 40
SPLIT_PERCENT: tuple[tuple[Split, int], ...] = (("calibrate", 14), ("evaluate", 10), ("train", 76))


def split_of(name: str) -> Split:
    """The split a document belongs to, from the hash of its name."""
    percentile = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 100
    for split, share in SPLIT_PERCENT:
        if percentile < share:
            return split
        percentile -= share
    raise AssertionError("SPLIT_PERCENT must add up to 100")


def docstrings(path: Path) -> Iterator[str]:
    """Those of a file that are longer than a line. Raises what `ast.parse` does."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and len(text) > MIN_DOCSTRING_CHARS:
                yield text


def raw_documents() -> Iterator[tuple[str, list[str]]]:
    """(name, texts) of every document, with texts that occur twice."""
    from pydoc_data import topics

    for topic, text in sorted(topics.topics.items()):
        yield f"topic/{topic}", [text]
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root).as_posix()
        if "site-packages" in relative or "pydoc_data" in relative:
            continue
        try:
            texts = list(docstrings(path))
        except (SyntaxError, UnicodeDecodeError):  # the test suite ships files that are broken on purpose
            continue
        yield f"module/{relative}", texts


def documents() -> dict[str, str]:
    """Name -> text of every document, each paragraph-sized docstring kept once over the whole corpus."""
    seen: set[str] = set()
    result: dict[str, str] = {}
    for name, texts in raw_documents():
        fresh = [t for t in texts if t not in seen]
        seen.update(fresh)
        body = "\n\n".join(dict.fromkeys(fresh))
        if len(body) > MIN_DOCSTRING_CHARS:
            result[name] = body
    return result


def split_documents(split: Split) -> list[str]:
    """Texts of one split, ordered by document name."""
    return [text for name, text in sorted(documents().items()) if split_of(name) == split]


def main() -> None:
    """Write the two shipped splits."""
    for split in ("calibrate", "evaluate"):
        named = [(n, t) for n, t in sorted(documents().items()) if split_of(n) == split]
        lines = [json.dumps({"name": n, "text": t}, ensure_ascii=False) for n, t in named]
        Path(__file__).with_name(f"{split}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
        print(f"{split}: {len(named)} documents, {sum(len(t) for _, t in named):,} characters")


if __name__ == "__main__":
    main()
