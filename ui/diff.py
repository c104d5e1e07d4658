"""Two builds side by side: what was asked differently, which inputs changed, which units, what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from schemas.report import AllocationRow, Report


@dataclass(frozen=True)
class Change:
    """A field that has another value; None where one of the two lacks it."""

    name: str
    first: Any
    second: Any


@dataclass(frozen=True)
class Moved:
    """A unit that has another format."""

    unit: str
    first: AllocationRow | None
    second: AllocationRow | None

    @property
    def bytes(self) -> int:
        """By how much it grew."""
        return (self.second.bytes if self.second else 0) - (self.first.bytes if self.first else 0)

    @property
    def score(self) -> float:
        """By how much its predicted KL grew."""
        return (self.second.score if self.second else 0.0) - (self.first.score if self.first else 0.0)


@dataclass(frozen=True)
class Difference:
    """Everything that differs between two builds."""

    inputs: tuple[str, ...]
    """In words, what came from outside and is not the same."""
    recipe: tuple[Change, ...]
    nodes: tuple[str, ...]
    """Nodes whose outputs differ, in running order."""
    units: tuple[Moved, ...]
    libraries: tuple[Change, ...]


def compare(first: Report, second: Report) -> Difference:
    """The difference from the first to the second."""
    return Difference(
        tuple(_inputs(first, second)),
        tuple(_asked(_nodes(first), _nodes(second))),
        tuple(_outputs(first, second)),
        tuple(_units(first, second)),
        tuple(_changes(first.libraries, second.libraries)),
    )


def _nodes(report: Report) -> Mapping[str, Any]:
    nodes = report.recipe_document.get("nodes")
    return nodes if isinstance(nodes, dict) else {}


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Every scalar and every list of scalars by its path; `spec` is left out of paths."""
    if isinstance(value, Mapping):
        found: dict[str, Any] = {}
        for name, inner in value.items():
            found |= _leaves(inner, path if name == "spec" else f"{path}.{name}" if path else str(name))
        return found
    if isinstance(value, list) and any(isinstance(each, dict | list) for each in value):
        names = [_named(each) for each in value]
        if all(name is not None for name in names):
            return {path: names}
        return {k: v for i, each in enumerate(value) for k, v in _leaves(each, f"{path}[{i}]").items()}
    return {path: value}


def _named(value: Any) -> str | None:
    """A format in a list as its name."""
    if isinstance(value, dict) and {"bits", "group_size"} <= value.keys():
        group = value["group_size"]
        suffix = {"symmetric": "-sym", "asymmetric": "-asym"}.get(str(value.get("symmetry")), "")
        return f"int{value['bits']}-{group if group == 'row' else f'g{group}'}{suffix}"
    return str(value["type"]) if isinstance(value, dict) and value.get("kind") == "ggml" else None


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    for name in dict.fromkeys([*before, *after]):
        if before.get(name) != after.get(name):
            yield Change(name, before.get(name), after.get(name))


def _asked(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    """Nodes that only one recipe has, as their steps; fields of those that both have."""
    steps = [{name: node.get("spec", {}).get("step") for name, node in nodes.items()} for nodes in (before, after)]
    yield from (change for change in _changes(*steps) if change.first is None or change.second is None)
    both = before.keys() & after.keys()
    yield from _changes(*(_leaves({n: node for n, node in nodes.items() if n in both}) for nodes in (before, after)))


def _inputs(first: Report, second: Report) -> Iterator[str]:
    """What came from outside: another place, or the same place with other content."""
    before, after = ({row.id: row for row in report.nodes} for report in (first, second))
    for name, node in _nodes(first).items():
        spec, other = node.get("spec", {}), _nodes(second).get(name, {}).get("spec", {})
        if spec.get("step") not in ("model", "text") or name not in before or name not in after:
            continue
        what = "the model" if spec["step"] == "model" else f"the {name.replace('_', ' ')}"
        moved, same = spec.get("source") != other.get("source"), before[name].outputs == after[name].outputs
        if moved and not same:
            yield f"{what} is another one: {spec.get('source')} → {other.get('source')}"
        elif not same:
            yield f"{what} changed: {spec.get('source')} has other content"
        elif moved:
            yield f"{what} is read from another place, with the same content"


def _outputs(first: Report, second: Report) -> Iterator[str]:
    before = {row.id: row.outputs for row in first.nodes}
    return (row.id for row in second.nodes if row.id in before and row.outputs != before[row.id])


def _units(first: Report, second: Report) -> Iterator[Moved]:
    before, after = ({row.unit: row for row in report.allocation} for report in (first, second))
    for unit in dict.fromkeys([*before, *after]):
        one, other = before.get(unit), after.get(unit)
        if one is None or other is None or one.format != other.format:
            yield Moved(unit, one, other)
