"""The packing end of a short recipe: formats of one engine, and a pack and a verify node for each file format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from schemas.format import Format
from schemas.pack import Pack
from schemas.recipe import Node, Recipe, ShortRecipe
from steps.pack.engines import readers, restrict

MakeNode = Callable[..., Node]
BASELINES = {
    "plan": "plan",
    "allocated": "allocated_evaluation",
    "uniform": "uniform_evaluation",
    "greedy": "greedy_evaluation",
}


def for_target(short: ShortRecipe) -> ShortRecipe:
    """The recipe with only the formats that its target runs; InputError when there is none."""
    if short.target is None:
        return short
    formats = restrict(short.target, short.pack[0].format, short.formats)
    return short.model_copy(update={"formats": tuple(formats)})


def priced(short: ShortRecipe) -> dict[str, Any]:
    """Fields of the allocate node: whose bytes count."""
    return {"pack": short.pack[0].format, "shard_bytes": short.pack[0].shard_bytes}


def packing_nodes(short: ShortRecipe, selection: str, make: MakeNode) -> dict[str, Node]:
    """`packed` and `verdict` for the first file format, with every baseline; `packed_<format>` and so on for others.

    Bytes and uniform baselines are of the first, so the gates on them are, too.
    """
    nodes: dict[str, Node] = {}
    for place, packing in enumerate(short.pack):
        suffix = f"_{packing.format.replace('.', '-')}" if place else ""
        packed, gates = f"packed{suffix}", short.gates
        if place:
            gates = gates.model_copy(update={"max_bytes": None, "beats_uniform": False})
        inputs = {
            "packed": packed,
            "model": "model",
            "selection": selection,
            "tokens": "evaluation",
            "reference": "reference",
            **({} if place else BASELINES),
        }
        target = None if place else short.target
        wanted = {"model": "model", "selection": selection}
        nodes[packed] = make("pack", wanted, **packing.model_dump(), target=target)
        nodes[f"verdict{suffix}"] = make("verify", inputs, gates=gates, batch=short.batch, load=short.load)
    return nodes


def engine_notes(recipe: Recipe, formats: Sequence[Format]) -> Iterator[str]:
    """For each pack node, which engines run which of the formats on offer."""
    for name, node in recipe.nodes.items():
        if isinstance(node.spec, Pack):
            said = [_engine(engine, reasons, formats) for engine, reasons in readers(node.spec.format, formats).items()]
            yield f"{name} ({node.spec.format}): {'; '.join(said)}"


def _engine(engine: str, reasons: Sequence[str], formats: Sequence[Format]) -> str:
    if not reasons:
        return f"{engine} runs every format on offer"
    return f"{engine} runs {len(formats) - len(reasons)} of {len(formats)} ({reasons[0]})"
