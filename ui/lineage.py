"""Where a build's bytes come from: its nodes from the packed folder down; any digest with the trace that made it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from schemas.report import NodeRow, Report
from store.errors import Unavailable
from store.open import Store
from store.traces import Trace

SHOWN = 400
"""Parts, tensors and files of one artifact that a page lists."""
META_SHOWN = 20_000
"""Characters of an artifact's facts that a page shows."""


@dataclass(frozen=True)
class Branch:
    """A node with what it was handed; `again` means that it stands above, with its own inputs."""

    port: str
    node: str
    step: str
    outputs: Mapping[str, str]
    source: str | None
    row: NodeRow | None
    again: bool
    inputs: tuple[Branch, ...] = ()


def tree(report: Report) -> Branch | None:
    """From the node whose output is the packed folder down to models and texts."""
    nodes = report.recipe_document.get("nodes")
    rows = {row.id: row for row in report.nodes}
    top = next((row.id for row in report.nodes if report.packed.digest in row.outputs.values()), None)
    if top is None or not isinstance(nodes, dict):
        return None
    shown: set[str] = set()

    def branch(port: str, node: str) -> Branch:
        document: dict[str, Any] = nodes.get(node, {})
        spec, row = document.get("spec", {}), rows.get(node)
        again = node in shown
        shown.add(node)
        inputs = {} if again else document.get("inputs", {})
        return Branch(
            port, node, str(spec.get("step", "")), row.outputs if row else {}, spec.get("source"), row, again,
            tuple(branch(name, str(edge).partition(".")[0]) for name, edge in inputs.items()),
        )  # fmt: skip

    return branch("packed", top)


@dataclass(frozen=True)
class Facts:
    """What is known of a digest; everything may be empty but the digest."""

    digest: str
    maker: Trace | None = None
    present: bool = False
    meta: str = ""
    tensors: Mapping[str, Any] = field(default_factory=dict)
    children: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    readers: int = 0


def facts(store: Store, digest: str) -> Facts | None:
    """The artifact and the trace that made it; None if the store knows neither. Reads every trace of the store once."""
    traces = store.traces.all().values()
    made = [t for t in traces if digest in t.outputs.values() or t.key == digest]
    maker = max(made, key=lambda t: float(t.facts.get("created", 0.0)), default=None)
    readers = sum(digest in t.document.get("inputs", {}).values() for t in traces)
    try:
        artifact = store.artifacts.load(digest)
        meta = json.dumps(artifact.meta, indent=1, ensure_ascii=False)
    except Unavailable:
        return Facts(digest, maker, readers=readers) if maker or readers else None
    return Facts(
        digest, maker, True, meta[:META_SHOWN] + ("\n…" if len(meta) > META_SHOWN else ""),
        dict(artifact.tensors.rows), dict(artifact.children.digests), dict(artifact.files.rows), readers,
    )  # fmt: skip
