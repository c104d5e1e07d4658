"""What is measured of a packed file beside its verdict: further texts, and samples to read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pipelines.drive import Built
from pipelines.run import Runner
from schemas.recipe import Node, ShortRecipe
from schemas.report import DomainRow, Generation
from schemas.verify import Generate, Measure

MakeNode = Callable[..., Node]
PREFIX = "domain_"


def evaluation_nodes(short: ShortRecipe, make: MakeNode) -> dict[str, Node]:
    """A measure node per domain with what it reads, and the node that generates."""
    nodes: dict[str, Node] = {}
    for name, source in short.text.domains.items():
        nodes |= _domain(f"{PREFIX}{name}", source, short, make)
    if short.samples:
        inputs = {"packed": "packed", "model": "model", "tokens": "evaluation"}
        nodes["generations"] = make("generate", inputs, samples=short.samples, load=short.load)
    return nodes


def _domain(node: str, source: str, short: ShortRecipe, make: MakeNode) -> dict[str, Node]:
    text = short.text
    cut = {"layout": "document", "length": text.length, "windows": text.domain_windows, "seed": text.seed}
    read = {"model": "model", "tokens": f"{node}_tokens", "reference": f"{node}_reference"}
    built = {"packed": "packed", "plan": "plan"}
    return {
        f"{node}_text": make("text", source=source, field=text.field),
        f"{node}_tokens": make("tokenize", {"text": f"{node}_text", "model": "model"}, **cut),
        f"{node}_reference": make("reference", {"model": "model", "tokens": f"{node}_tokens"}, batch=short.batch),
        f"{node}_uniform": make("evaluate", {**read, "selection": "uniform"}, batch=short.batch),
        node: make("measure", {**read, **built, "uniform": f"{node}_uniform"}, batch=short.batch, load=short.load),
    }


def domains_of(runner: Runner, built: Built) -> tuple[DomainRow, ...]:
    """The table of domains: one row per measure node, named like it."""
    return tuple(
        DomainRow(name=name.removeprefix(PREFIX), **meta["domain"]) for name, meta in _metas(runner, built, Measure)
    )


def generations_of(runner: Runner, built: Built) -> tuple[Generation, ...]:
    """Samples of every generate node."""
    return tuple(Generation(**each) for _, meta in _metas(runner, built, Generate) for each in meta["generations"])


def _metas(runner: Runner, built: Built, kind: type[Measure] | type[Generate]) -> list[tuple[str, Mapping[str, Any]]]:
    """Node and facts of every node of a kind, in the recipe's order."""
    names = [name for name, node in runner.recipe.nodes.items() if isinstance(node.spec, kind)]
    return [(name, runner.store.artifacts.load(next(iter(built.outputs[name].values()))).meta) for name in names]
