"""What a sweep over budgets consists of: one ordinary build per budget, and a graph of what they are compared with.

Every budget is a recipe of its own, so what they share (statistics, candidates, scores, evaluations of baselines) is
found under its key: a unit is quantized and scored once, whatever the number of budgets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from pipelines.build import Build, prepare
from pipelines.expand import expand
from pipelines.recipe_file import find_recipe, read_yaml
from pipelines.run import Runner
from pipelines.settings import Settings
from schemas.allocate import Allocate, Random, Uniform
from schemas.base import Spec
from schemas.budget import Budget
from schemas.errors import InputError
from schemas.quantize import Quantize
from schemas.recipe import Node, Recipe
from schemas.sensitivity import METRICS, MetricName
from schemas.verify import Verify

LARGEST = 32.0
"""Bits per weight that every format fits in."""


@dataclass(frozen=True)
class Asked:
    """A recipe, its overrides, and the budgets to go through."""

    recipe: str
    assignments: tuple[tuple[str, Any], ...]
    bits: tuple[float, ...]
    over: Literal["linears", "file"]
    metrics: tuple[MetricName, ...] = ()
    random: int = 0
    """Random plans per budget."""


class Rung(NamedTuple):
    """One budget of a sweep: the overrides that ask for it, and the build."""

    bits: float
    overrides: dict[str, Any]
    build: Build


class Contender(NamedTuple):
    """One plan of the comparison: what made it, its budget, and its two nodes."""

    series: str
    label: str
    bits: float | None
    plan: str
    evaluation: str


@dataclass(frozen=True)
class Comparison:
    """The graph of all plans that builds are compared with, and where in it they are."""

    build: Build
    contenders: tuple[Contender, ...]


def budget_assignments(asked: Asked, bits: float, fields: Sequence[str]) -> tuple[tuple[str, Any], ...]:
    """The overrides that make the recipe one of the sweep's; `fields` are where it states budgets."""
    fixed = (*asked.assignments, *((f"{field}.over", asked.over) for field in fields))
    return (*fixed, *((f"{field}.bits_per_weight", bits) for field in fields))


def rungs(asked: Asked, where: Settings, device: str) -> list[Rung]:
    """One build per budget, prepared. InputError for a recipe that is not about a limit on size."""
    base = prepare(asked.recipe, asked.assignments, where, device)
    fields = ["budget"] if base.short is not None else list(_budget_fields(asked.recipe, base.recipe))
    budget = _spec(base.recipe).budget
    if budget.max_predicted_kl is not None:
        raise InputError(
            "a sweep over sizes cannot minimise bytes",
            where="budget.max_predicted_kl",
            got=budget.max_predicted_kl,
            wanted="no such limit",
            fix="--set budget.max_predicted_kl=null",
        )
    found = []
    for bits in asked.bits:
        overrides = budget_assignments(asked, bits, fields)
        found.append(Rung(bits, dict(overrides), prepare(asked.recipe, overrides, where, device)))
    return found


def _budget_fields(name: str, recipe: Recipe) -> Iterator[str]:
    """Where a recipe with nodes states its budgets, as it was written: beside a node's inputs or under `spec`."""
    written = read_yaml(find_recipe(name))["nodes"]
    for node, found in recipe.nodes.items():
        if isinstance(found.spec, Allocate):
            yield f"nodes.{node}{'.spec' if 'spec' in written[node] else ''}.budget"


def allocate_node(recipe: Recipe) -> str:
    """The first allocate node: of two rounds, the one of the first."""
    found = [name for name, node in recipe.nodes.items() if isinstance(node.spec, Allocate)]
    if not found:
        raise InputError("a sweep needs a recipe that allocates", where=f"recipe {recipe.name}", got="no allocate node")
    return found[0]


def comparison(asked: Asked, rungs: Sequence[Rung]) -> Comparison:
    """Every uniform format once, and per budget a plan of each other metric and the random plans."""
    base = rungs[0].build
    graph = _Graph(base.recipe)
    quantize = next(node.spec for node in base.recipe.nodes.values() if isinstance(node.spec, Quantize))
    for fmt in quantize.formats:
        spec = _allocate(base, Uniform(kind="uniform", format=fmt), Budget(bits_per_weight=LARGEST))
        graph.add("uniform", fmt.name, None, spec, graph.scores)
    for metric in asked.metrics:
        for rung in rungs:
            scores = graph.graft(_with_metric(rung.build, metric), metric)
            graph.add(metric, f"{rung.bits:g}", rung.bits, _allocate(rung.build), scores)
    for seed in range(asked.random):
        for rung in rungs:
            spec = _allocate(rung.build, Random(kind="random", seed=seed))
            graph.add("random", f"{rung.bits:g} {seed}", rung.bits, spec, graph.scores)
    recipe = graph.recipe()
    runner = Runner(recipe, base.runner.store, base.runner.place)
    return Comparison(Build(recipe, None, runner, base.where), tuple(graph.contenders))


def _allocate(build: Build, allocator: Spec | None = None, budget: Budget | None = None) -> Allocate:
    """The build's allocate spec, with another allocator or budget; what is only compared needs no bootstrap."""
    spec = _spec(build.recipe)
    changes = {"allocator": allocator, "budget": budget}
    return spec.model_copy(update={name: each for name, each in changes.items() if each is not None} | {"bootstrap": 0})


def _with_metric(build: Build, metric: MetricName) -> Recipe:
    """The build's recipe as it would be with another metric."""
    if build.short is None:
        raise InputError(
            "other metrics need a recipe in the short form",
            where="--metrics",
            got="a recipe with nodes",
            fix="leave --metrics out, or write the recipe in the short form",
        )
    if metric not in METRICS:
        raise InputError("no such metric", where="--metrics", got=metric, wanted=", ".join(METRICS))
    short = build.short.model_copy(update={"sensitivity": metric})
    return expand(short)


def _spec(recipe: Recipe) -> Allocate:
    spec = recipe.nodes[allocate_node(recipe)].spec
    assert isinstance(spec, Allocate)
    return spec


class _Graph:
    """A recipe under construction: nodes shared with a build, and a plan, selection and evaluation per contender."""

    def __init__(self, base: Recipe) -> None:
        self.base, self.nodes = base, dict[str, Node]()
        self.contenders: list[Contender] = []
        self.allocate = base.nodes[allocate_node(base)]
        verify = next(node for node in base.nodes.values() if isinstance(node.spec, Verify))
        self.evaluate = base.nodes[verify.inputs["allocated"].partition(".")[0]]
        self.scores = self.allocate.inputs["scores"]
        for edge in (*self.allocate.inputs.values(), *self.evaluate.inputs.values()):
            if edge != self.evaluate.inputs["selection"]:
                self._copy(base, edge, "")

    def _copy(self, recipe: Recipe, edge: str, tag: str) -> str:
        """An edge's node and all it needs; a node that is there under its name but is another one gets a tag."""
        name, dot, port = edge.partition(".")
        node = recipe.nodes[name]
        node = node.model_copy(update={"inputs": {p: self._copy(recipe, e, tag) for p, e in node.inputs.items()}})
        if self.nodes.setdefault(name, node) != node:
            name = f"{name}_{tag}"
            self.nodes[name] = node
        return f"{name}{dot}{port}"

    def graft(self, recipe: Recipe, tag: str) -> str:
        """The scores of another recipe; the edge to them."""
        return self._copy(recipe, recipe.nodes[allocate_node(recipe)].inputs["scores"], tag)

    def add(self, series: str, label: str, bits: float | None, spec: Allocate, scores: str) -> None:
        """A plan by `spec` from these scores, and its evaluation."""
        name = f"{series}_{label}".replace(" ", "_").replace(".", "_")
        plan, selection, evaluation = f"{name}_plan", f"{name}_selection", f"{name}_evaluation"
        inputs = {**self.allocate.inputs, "scores": scores}
        select = {"candidates": self.allocate.inputs["candidates"], "plan": plan}
        self.nodes[plan] = Node(spec=spec, inputs=inputs)
        self.nodes[selection] = Node.model_validate({"step": "select", "plan": "plan", "inputs": select})
        self.nodes[evaluation] = self.evaluate.model_copy(
            update={"inputs": {**self.evaluate.inputs, "selection": selection}}
        )
        self.contenders.append(Contender(series, label, bits, plan, evaluation))

    def recipe(self) -> Recipe:
        """The finished graph."""
        return Recipe(name=f"{self.base.name[:50]}-comparison", nodes=self.nodes)
