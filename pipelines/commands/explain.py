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
        missed = [i for i in state.items if i.key not in state.outputs]
        lines = [f"{len(state.pending)} of {state.total} items have to run"]
        for item in missed[:EXAMPLES_PER_NODE]:
            nearest = build.runner.store.traces.nearest(item.document)
            lines += [f"{item.place.label}: {reason}" for reason in reasons(nearest, item)]
        yield bound.id, lines


def reasons(nearest: Trace | None, item: Item) -> list[str]:
    """Why an item's key differs from the nearest earlier one; for code, which files changed."""
    if nearest is None:
        return ["never ran before"]
    lines = differences(nearest.document, item.document)
    if nearest.document["code"] != item.document["code"]:
        old, new = nearest.facts.get("modules", {}), module_digests(item.step.module)
        files = sorted(m for m in old.keys() | new.keys() if old.get(m) != new.get(m))
        lines.append(f"code of {item.step.module}: {', '.join(files) or 'only its version'} changed")
    return lines


def _hit(bound: Bound, items: int, outputs: Mapping[str, str]) -> str:
    digests = ", ".join(f"{port} {digest[:12]}" for port, digest in outputs.items())
    return f"source, {digests}" if bound.step is None else f"cached, {items} item(s), {digests}"


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Field by field, what changed from an earlier key document."""
    before, after = dict(_leaves(old, "")), dict(_leaves(new, ""))
    changed = [f for f in sorted(before | after) if before.get(f) != after.get(f)]
    return [f"{f}: {_short(before.get(f))} -> {_short(after.get(f))}" for f in changed] or ["its trace is gone"]


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(inner, f"{path}.{name}" if path else str(name))
    else:
        yield path, value


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) == 64 else text
