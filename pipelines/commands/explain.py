"""`bitsmith explain`: for every node, hit or the difference to the nearest earlier key."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.build import Build, prepare
from pipelines.code_id import module_digests
from pipelines.drive import Outputs
from pipelines.graph import Bound
from pipelines.items import Item
from pipelines.recipe_file import parse_assignment
from pipelines.run import NodeState
from pipelines.settings import settings
from schemas.errors import InputError
from store.traces import Trace

EXAMPLES_PER_NODE = 3


def explain(options: argparse.Namespace) -> int:
    """Print why each node, or one, is cached or has to run."""
    build = prepare(
        options.recipe, [parse_assignment(a) for a in options.set], settings(options.store, options.tracking)
    )
    if options.node is not None and options.node not in build.runner.by_id:
        known = ", ".join(build.runner.by_id)
        raise InputError("no such node", where=f"recipe {build.recipe.name}", got=options.node, wanted=known)
    for node, lines in explanations(build):
        if options.node in (None, node):
            print("\n".join([f"{node}: {lines[0]}", *(f"    {line}" for line in lines[1:])]))
    return 0


def explanations(build: Build) -> Iterator[tuple[str, list[str]]]:
    """Per node in running order: a headline, then reasons."""
    outputs: Outputs = {}
    for bound in build.runner.bound:
        waits = sorted({n for n, _ in bound.inputs.values() if n not in outputs})
        if waits:
            yield bound.id, [f"waits for {', '.join(waits)}: whether it runs depends on what they give"]
            continue
        state = build.runner.state(bound, outputs)
        if state.combined is not None:
            outputs[bound.id] = state.combined
            yield bound.id, [_hit(bound, len(state.items), state.combined)]
            continue
        lines = [f"{len(state.pending)} of {state.total} items have to run"]
        for item in _missed(state)[:EXAMPLES_PER_NODE]:
            nearest = build.runner.store.traces.nearest(item.document)
            lines += [f"{item.place.label}: {reason}" for reason in reasons(bound, nearest, item)]
        yield bound.id, lines


def changes(build: Build) -> dict[str, list[str]]:
    """Per node that has run before and has to run again: what changed for its first such item."""
    found, outputs = dict[str, list[str]](), Outputs()
    for bound in build.runner.bound:
        if any(n not in outputs for n, _ in bound.inputs.values()):
            continue
        state = build.runner.state(bound, outputs)
        if state.combined is not None:
            outputs[bound.id] = state.combined
            continue
        item = _missed(state)[0]
        nearest = build.runner.store.traces.nearest(item.document)
        if nearest is not None:
            found[bound.id] = reasons(bound, nearest, item)
    return found


def _missed(state: NodeState) -> list[Item]:
    return [item for item in state.items if item.key not in state.outputs]


def reasons(bound: Bound, nearest: Trace | None, item: Item) -> list[str]:
    """Why an item's key differs from the nearest earlier one: the node that gives another input, the file of code that
    changed, the field of the spec, the library."""
    if nearest is None:
        return ["never ran before"]
    lines = []
    for field, old, new in differences(nearest.document, item.document):
        kind, _, rest = field.partition(".")
        if kind == "code":
            lines += _code(nearest, item)
        elif kind == "inputs":
            lines.append(f"{_giver(bound, rest)}: {_short(old)} -> {_short(new)}")
        else:
            lines.append(f"{field}: {_short(old)} -> {_short(new)}")
    return lines or ["its trace is gone"]


def _giver(bound: Bound, port: str) -> str:
    """The node behind an input port and the name of what it gives there."""
    if port not in bound.inputs:
        return f"{port} of the block before"
    node = bound.inputs[port][0]
    return port if node == port else f"{node} {port}"


def _code(nearest: Trace, item: Item) -> list[str]:
    """`code of FOLDER: FILE, FILE changed` for every folder with files that are not what they were."""
    old, new = nearest.facts.get("modules", {}), module_digests(item.step.module)
    folders: dict[str, list[str]] = {}
    for module in sorted(m for m in old.keys() | new.keys() if old.get(m) != new.get(m)):
        folder, _, name = module.replace(".", "/").rpartition("/")
        folders.setdefault(folder, []).append(f"{name}.py")
    versions = f"{_version(nearest.document['code'])} -> {_version(item.document['code'])}"
    return [f"code of {folder}: {', '.join(files)} changed" for folder, files in folders.items()] or [
        f"code of {item.step.module.replace('.', '/')}.py: {versions}"
    ]


def _version(code: str) -> str:
    word, _, digest = code.partition(":")
    return f"{word}:{digest[:8]}" if digest else word


def _hit(bound: Bound, items: int, outputs: Mapping[str, str]) -> str:
    digests = ", ".join(f"{port} {digest[:12]}" for port, digest in outputs.items())
    return f"source, {digests}" if bound.step is None else f"cached, {items} item(s), {digests}"


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Field by field, what changed from an earlier key document."""
    before, after = dict(_leaves(old, "")), dict(_leaves(new, ""))
    return [(f, before.get(f), after.get(f)) for f in sorted(before | after) if before.get(f) != after.get(f)]


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(inner, f"{path}.{name}" if path else str(name))
    else:
        yield path, value


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) == 64 else text
