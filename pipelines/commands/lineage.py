"""`bitsmith lineage`: the tree of what a packed file or any digest was made from, through traces.

Digests that came out of the same step on the same port of their reader stand in one line, so that the tree of a model
of any size is as long as its recipe. What was shown once is not shown again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, get_args

from pipelines.commands.tensors import Weights
from pipelines.origins import Found, Origins, open_origins
from pipelines.settings import settings
from schemas.format import read_format
from steps.table import STEPS
from store.traces import Trace

ROWS = {step.module: step for step in STEPS}
PARTS = {
    "tokenizer": "tokenizer files of the model",
    "structure": "config and shapes of the model",
    "block": "weights of",
    "unit": "weights of",
    "whole": "from outside",
}
SHOWN = 6
"""Names in a line, tensors under a step."""


def lineage(options: argparse.Namespace) -> int:
    """Print the tree."""
    where = settings(options.store)
    origins = open_origins(where.store)
    found = origins.find(options.what)
    if found.build is not None:
        print(
            f"build {found.build.digest[:12]}, recipe {found.build.report['recipe']}, {found.build.report['created']}"
        )
    tree = Tree(origins, Weights.of(found.build, where.cache), options.depth)
    for level, text in tree.lines(found):
        print("  " * level + text)
    return 0


class Tree:
    """Walks from outputs to inputs, a group of digests at a time."""

    def __init__(self, origins: Origins, weights: Weights, depth: int | None = None) -> None:
        self.origins, self.weights, self.depth = origins, weights, depth
        self.names: dict[str, str] = {}
        """What a digest is called where it is a part."""
        self._shown: set[str] = set()

    def lines(self, found: Found) -> Iterator[tuple[int, str]]:
        """(level, text) from the digest down."""
        meta = self.origins.meta(found.digest)
        if "unit" in meta and "format" in meta:
            self.names[found.digest] = f"{meta['unit']}/{_format(meta['format'])}"
        yield from self._group("packed" if found.build else "artifact", [found.digest], None, 0)

    def _group(self, port: str, digests: list[str], reader: str | None, level: int) -> Iterator[tuple[int, str]]:
        """Digests that one port of a step was handed: those made by one step together, then what no step made."""
        made: dict[str, list[str]] = {}
        for digest in digests:
            trace = self.origins.makers.get(digest)
            made.setdefault(trace.document["step"] if trace else "", []).append(digest)
        for step, group in made.items():
            if step:
                yield from self._step(port, group, level)
            else:
                yield from self._unmade(port, group, reader, level)

    def _step(self, port: str, digests: list[str], level: int) -> Iterator[tuple[int, str]]:
        traces = list({t.key: t for t in (self.origins.makers[d] for d in digests)}.values())
        known = {t.key for t in traces} <= self._shown
        self._shown |= {t.key for t in traces}
        yield level, f"{port} {_digests(digests)} <- {_made(traces)}{' (see above)' if known else ''}"
        if known:
            return
        for line in self._details(traces, digests):
            yield level + 1, f"| {line}"
        if self.depth is None or level < self.depth:
            for name, inputs in _inputs(traces).items():
                yield from self._group(name, inputs, traces[0].document["step"], level + 1)

    def _unmade(self, port: str, digests: list[str], reader: str | None, level: int) -> Iterator[tuple[int, str]]:
        """Artifacts that only gather parts, and what came from outside."""
        outside = []
        for digest in digests:
            children = self.origins.children(digest)
            if not children:
                outside.append(digest)
                continue
            self.names |= {child: name for name, child in children.items()}
            yield level, f"{port} {digest[:12]}, {len(children)} parts"
            if self.depth is None or level < self.depth:
                yield from self._group("parts", list(dict.fromkeys(children.values())), reader, level + 1)
        if outside:
            yield level, f"{port} {_digests(outside)}, {self._origin(port, outside, reader)}"

    def _origin(self, port: str, digests: list[str], reader: str | None) -> str:
        if sources := sorted({self.origins.sources[d] for d in digests if d in self.origins.sources}):
            return ", ".join(sources)
        row = ROWS.get(reader or "")
        if row is None or row.inputs.get(port) not in ("model", "documents"):
            gone = not self.origins.store.artifacts.has(digests[0])
            return "no longer in the store, and no trace says what made it" if gone else "no trace says what made it"
        view = row.views.get(port, "whole")
        return PARTS.get(view, "") + (f" {len(digests)} {view}(s)" if view in ("block", "unit") else "")

    def _details(self, traces: list[Trace], digests: list[str]) -> Iterator[str]:
        """What the outputs are, by the kind of step that made them."""
        row = ROWS.get(traces[0].document["step"])
        if row is not None and row.scope != "model" and (names := [self.names[d] for d in digests if d in self.names]):
            yield from _collapsed(names)
        if row is not None and row.views.get("model") == "unit":
            named = [(self.names.get(d, ""), self.origins.makers[d]) for d in digests]
            yield from self.weights.lines(named, SHOWN)
        for digest in digests if len(digests) == 1 else ():
            meta = self.origins.meta(digest)
            if isinstance(meta.get("plan"), Mapping):
                yield from (f"{fmt}: {units}" for fmt, units in _by_format(meta["plan"]))
            if "document_digests" in meta:
                texts = meta["document_digests"]
                yield f"{len(texts)} texts: {_some([t[:12] for t in texts])}"


def _inputs(traces: Iterable[Trace]) -> dict[str, list[str]]:
    """What the calls of a step were handed, by port, each digest once."""
    ports: dict[str, dict[str, None]] = {}
    for trace in traces:
        for port, digest in trace.document["inputs"].items():
            ports.setdefault(port, {})[digest] = None
    return {port: list(digests) for port, digests in ports.items()}


def _made(traces: list[Trace]) -> str:
    """Which step, which code, which libraries, how often, how long, when."""
    row = ROWS.get(traces[0].document["step"])
    name = get_args(row.spec.model_fields["step"].annotation)[0] if row else traces[0].document["step"]
    codes = sorted({shorten(t.document["code"]) for t in traces})
    libraries = sorted({f"{k} {v}" for t in traces for k, v in t.document["libraries"].items()})
    count = f"{len(traces)} x " if len(traces) > 1 else ""
    seconds = sum(float(t.facts.get("seconds", 0.0)) for t in traces)
    created = max(float(t.facts.get("created", 0.0)) for t in traces)
    when = datetime.fromtimestamp(created).isoformat(" ", "seconds")
    return f"{count}{name} {' '.join(codes)} ({', '.join([*libraries, f'{seconds:.2f} s', when])})"


def shorten(code: str) -> str:
    """A version, or the beginning of the digest of code that has none."""
    return code[: len("dirty:") + 8] if code.startswith("dirty:") else code


def _digests(digests: list[str]) -> str:
    return digests[0][:12] + (f" and {len(digests) - 1} more" if len(digests) > 1 else "")


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _collapsed(names: list[str]) -> Iterator[str]:
    """`unit/format` names by what is alike."""
    if not all("/" in name for name in names):
        if not all(name.isdigit() for name in names):
            yield _some(names)
        return
    units = list(dict.fromkeys(n.rpartition("/")[0] for n in names))
    formats = list(dict.fromkeys(n.rpartition("/")[2] for n in names))
    yield f"{_some(units)} in {', '.join(formats)}"


def _by_format(plan: Mapping[str, str]) -> list[tuple[str, str]]:
    chosen: dict[str, list[str]] = {}
    for unit, fmt in plan.items():
        chosen.setdefault(fmt, []).append(unit)
    return [(fmt, f"{len(units)} unit(s): {_some(units)}") for fmt, units in sorted(chosen.items())]


def _format(document: Any) -> str:
    return document if isinstance(document, str) else read_format(document).name
