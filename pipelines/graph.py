"""A recipe as a checked graph: ports exist, types meet, nothing is circular; nodes in an order that can run."""

from __future__ import annotations

from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from schemas.artifact import PortType
from schemas.errors import InputError
from schemas.recipe import Node, Recipe
from steps.step import Step
from steps.table import SOURCES, step_of


@dataclass(frozen=True)
class Bound:
    """A node whose inputs are resolved to (node, output port)."""

    id: str
    node: Node
    step: Step | None
    """None for what is read from outside."""
    inputs: dict[str, tuple[str, str]]


def bind(recipe: Recipe) -> list[Bound]:
    """All nodes in running order. Raises InputError for an edge that cannot be."""
    bound = {name: _bind_node(name, node, recipe) for name, node in recipe.nodes.items()}
    try:
        order = list(
            TopologicalSorter({b.id: [n for n, _ in b.inputs.values()] for b in bound.values()}).static_order()
        )
    except CycleError as error:
        raise InputError(
            "the recipe goes in a circle", where=f"recipe {recipe.name}", got=" -> ".join(error.args[1])
        ) from error
    rank = {name: i for i, name in enumerate(order)}
    return sorted(bound.values(), key=lambda b: rank[b.id])


def outputs_of(node: Node) -> dict[str, PortType]:
    """Output ports of a node; a source has one, named by its type."""
    if type(node.spec) in SOURCES:
        kind: PortType = SOURCES[type(node.spec)]  # type: ignore[assignment]
        return {kind: kind}
    return dict(step_of(node.spec).outputs)


def _bind_node(name: str, node: Node, recipe: Recipe) -> Bound:
    where = f"recipe {recipe.name}, node {name}"
    if type(node.spec) in SOURCES:
        if node.inputs:
            raise InputError("a source takes no inputs", where=where, got=", ".join(node.inputs), fix="remove them")
        return Bound(name, node, None, {})
    step = step_of(node.spec)
    wanted = set(step.inputs)
    if unknown := set(node.inputs) - wanted:
        raise InputError(
            "unknown input port", where=where, got=", ".join(sorted(unknown)), wanted=", ".join(sorted(wanted))
        )
    if absent := wanted - set(node.inputs) - step.optional:
        raise InputError(
            "missing input port", where=where, got=", ".join(sorted(node.inputs)), wanted=", ".join(sorted(absent))
        )
    return Bound(name, node, step, {p: _edge(where, p, step.inputs[p], e, recipe) for p, e in node.inputs.items()})


def _edge(where: str, port: str, wanted: PortType, edge: str, recipe: Recipe) -> tuple[str, str]:
    source, _, asked = edge.partition(".")
    if source not in recipe.nodes:
        raise InputError(
            "an input names no node", where=f"{where}, port {port}", got=edge, wanted=", ".join(sorted(recipe.nodes))
        )
    offered = outputs_of(recipe.nodes[source])
    chosen = asked or next((p for p, kind in offered.items() if kind == wanted), next(iter(offered)))
    if offered.get(chosen) != wanted:
        got = f"{edge} ({offered.get(chosen, 'no such port')})"
        raise InputError("an edge joins different types", where=f"{where}, port {port}", got=got, wanted=wanted)
    return source, chosen
