"""Why each node of a build ran, or did not: its traces against the nearest earlier ones of the same step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from schemas.report import NodeRow, Report
from store.errors import Unavailable
from store.open import Store
from store.traces import Trace
from ui.words import short, when

SHOWN = 3


def reasons(store: Store, report: Report) -> dict[str, list[str]]:
    """Node -> sentences. Reads every trace of the store once."""
    traces = sorted(store.traces.all().values(), key=_created)
    makers: dict[str, list[Trace]] = {}
    for trace in traces:
        for digest in trace.outputs.values():
            makers.setdefault(digest, []).append(trace)
    made = {row.id: _made(store, row, _spec(report, row.id), makers) for row in report.nodes}
    own = [trace for row in report.nodes if row.units_computed for trace in made[row.id][-row.units_computed :]]
    begun = min((_created(trace) for trace in own), default=0.0)
    before = [trace for trace in traces if _created(trace) < begun]
    return {row.id: _of_node(row, made[row.id], before) for row in report.nodes}


def _created(trace: Trace) -> float:
    return float(trace.facts.get("created", 0.0))


def _spec(report: Report, node: str) -> Any:
    nodes: Any = report.recipe_document.get("nodes", {})
    return nodes.get(node, {}).get("spec")


def _of_node(row: NodeRow, made: Sequence[Trace], before: Sequence[Trace]) -> list[str]:
    if row.units_computed + row.units_cached == 0:
        return [f"read from outside, content {short(d)}" for d in row.outputs.values()]
    if not made:
        return ["its traces are gone"]
    if row.status == "cached":
        oldest, newest = when(_created(made[0])), when(_created(made[-1]))
        span = oldest if oldest == newest else f"{oldest} to {newest}"
        return [f"every trace hit: made {span}, code {_code(made[-1])}"]
    return _ran(made[-row.units_computed :][0], before)


def _ran(fresh: Trace, before: Sequence[Trace]) -> list[str]:
    """What one of a node's traces differs in from the nearest that the store had before this build."""
    earlier = [t for t in before if t.document.get("step") == fresh.document.get("step")]
    if not earlier:
        return ["this step had never run on this store"]
    leaves = dict(_leaves(fresh.document)).items()
    nearest = max(earlier, key=lambda t: (len(leaves & dict(_leaves(t.document)).items()), _created(t)))
    changes = list(differences(nearest, fresh)) or ["its trace was gone"]
    more = [f"and {len(changes) - SHOWN} more fields"] if len(changes) > SHOWN else []
    return [*changes[:SHOWN], *more]


def _made(store: Store, row: NodeRow, spec: Any, makers: Mapping[str, Sequence[Trace]]) -> list[Trace]:
    """The traces behind a node's outputs, oldest first: its own, or those of its parts.

    Two nodes may have the same output; then the trace with this node's own spec is meant.
    """
    found: dict[str, Trace] = {}
    for digest in row.outputs.values():
        parts = [digest]
        if digest not in makers:
            try:
                parts = list(store.artifacts.load(digest).children.digests.values())
            except Unavailable:
                continue
        for part in parts:
            rivals = makers.get(part, ())
            own = [trace for trace in rivals if trace.document.get("spec") == spec] or rivals
            found |= {trace.key: trace for trace in own[-1:]}
    return sorted(found.values(), key=_created)


def differences(old: Trace, new: Trace) -> Iterator[str]:
    """Field by field, what a key document has that an earlier one had not."""
    before, after = dict(_leaves(old.document)), dict(_leaves(new.document))
    for name in sorted(before.keys() | after.keys()):
        was, now = before.get(name), after.get(name)
        if was != now:
            kind, _, rest = name.partition(".")
            yield {
                "inputs": f"input {rest} changed: {_short(was)} → {_short(now)}",
                "libraries": f"library {rest}: {was} → {now}",
                "code": f"code changed: {_short(was)} → {_short(now)}",
            }.get(kind, f"{rest or name}: {_short(was)} → {_short(now)}")


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(inner, f"{path}.{name}" if path else str(name))
    else:
        yield path, str(value)


def _code(trace: Trace) -> str:
    return _short(trace.document.get("code"))


def _short(value: Any) -> str:
    text = str(value)
    if text.startswith("dirty:"):
        return text[:14]
    return text[:12] if len(text) == 64 else text if len(text) < 60 else f"{text[:57]}…"
