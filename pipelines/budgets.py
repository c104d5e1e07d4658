"""The allocator over a recorded build's cost table: another budget, other pins; nothing is computed. Torch-free.

What a slider needs: a problem is set up once per set of pins, a budget is one solve, and the whole file is sized,
exactly, for plans that are shown. U units, C formats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from pipelines.recorded import Recorded
from schemas.allocate import Allocate, Allocator, Lagrangian, Pin
from schemas.budget import Budget
from schemas.errors import InputError
from steps.allocate import greedy, uniform
from steps.allocate.build import Solution, solve
from steps.allocate.limits import Allowed, ByteLimit, byte_limits, check_budget, extremes
from steps.allocate.plan import TIGHTEN, problem_of
from steps.allocate.problem import Choice, Problem
from steps.allocate.program import program_of, without_dominated
from steps.allocate.run import allowed_of, sizing_of
from steps.allocate.sizing import Sizing
from steps.allocate.table import Table, read
from store.errors import Unavailable, lost

POINTS = 25
"""Budgets of a front."""
TEN_MEGABYTES = 10_000_000


@dataclass(frozen=True)
class Costs:
    """A build's cost table, the byte arithmetic of its model, and what was asked."""

    spec: Allocate
    table: Table
    sizing: Sizing


@dataclass(frozen=True, eq=False)
class Pinned:
    """The problem that some pins (unit -> format, beside the recipe's own) leave, without a limit on size."""

    costs: Costs
    spec: Allocate
    allowed: Allowed
    problem: Problem
    sizes: dict[bytes, int] = field(default_factory=dict)

    def file(self, choice_U: Choice) -> int:
        """Exact bytes of the whole file; remembered, because sizing writes the file's whole header."""
        key = choice_U.tobytes()
        if key not in self.sizes:
            self.sizes[key] = self.costs.sizing.file(self.problem.plan_of(choice_U))
        return self.sizes[key]

    @cached_property
    def ends(self) -> tuple[Choice, Choice]:
        """The smallest and the largest plan."""
        low, high = extremes(self.costs.sizing, self.allowed)
        return self.problem.choice_of(low), self.problem.choice_of(high)

    @cached_property
    def around(self) -> int:
        """Bytes of the file beside the quantized units, header included, as in the smallest plan."""
        return self.file(self.ends[0]) - self.problem.bytes_of(self.ends[0])

    def units(self, whole: int) -> int:
        """What a size of the whole file leaves for the units; other headers differ by some bytes."""
        return max(whole - self.around, self.problem.bytes_of(self.ends[0]))

    def solved(self, limit: int | None, allocator: Allocator) -> Solution:
        """The plan of least predicted KL within so many bytes of units."""
        return solve(replace(self.problem, limit_bytes=limit), allocator)


def costs_of(recorded: Recorded) -> Costs:
    """Read the table from what the build's allocate node was handed: facts alone, no tensor."""
    bound = next((b for b in recorded.runner.bound if isinstance(b.node.spec, Allocate)), None)
    if bound is None:
        raise InputError("the build's recipe allocates nothing", where=f"build {recorded.report.build_digest[:12]}")
    spec = bound.node.spec
    assert isinstance(spec, Allocate)
    recorded.check_model(bound)
    try:
        inputs = recorded.runner.handles(bound, recorded.outputs)
        table = read(inputs["scores"], inputs["candidates"], inputs["model"])
    except Unavailable as error:
        raise lost(error) from error
    return Costs(spec, table, sizing_of(table, spec, inputs["model"]))


def pinned(costs: Costs, pins: Mapping[str, str]) -> Pinned:
    """Set the problem up. InputError for pins that cannot be met."""
    more = tuple(Pin.model_validate({"units": unit, "formats": [name]}) for unit, name in pins.items())
    spec = costs.spec.model_copy(update={"pins": (*costs.spec.pins, *more)})
    allowed = allowed_of(costs.table, spec)
    # Whether a KL can be reached is for `answer`: here no size is asked for yet.
    free = spec.model_copy(update={"budget": spec.budget.model_copy(update={"max_predicted_kl": None})})
    return Pinned(costs, spec, allowed, problem_of(costs.table, costs.sizing, free, allowed))


def budget_from(asked: Budget, changes: Mapping[str, Any]) -> Budget:
    """The build's budget with its size replaced; limits on parts and latency stay."""
    kept = asked.model_dump(mode="json", exclude={"bits_per_weight", "over", "bytes", "max_predicted_kl"})
    try:
        return Budget.model_validate({**kept, **changes})
    except ValueError as error:
        raise InputError("not a budget", where="budget", got=dict(changes), wanted=str(error)) from error


def described(costs: Costs) -> dict[str, Any]:
    """What does not change while a budget is explored: units, formats, their costs, the range of sizes."""
    table, sizing, free = costs.table, costs.sizing, pinned(costs, {})
    names = list(table.formats)
    cells = [[(i, j) for j in range(len(names))] for i in range(len(table.units))]
    low, high = (_point(free, choice_U) for choice_U in free.ends)
    return {
        "units": [{"name": u.name, "weights": sum(o * i for o, i in u.shapes)} for u in table.units],
        "formats": [{"name": f.name, "bits": f.bits} for f in table.formats.values()],
        "sizes": [
            [sizing.unit(table.units[i], names[j]) if table.present_UC[i, j] else None for i, j in row] for row in cells
        ],
        "scores": [[float(table.score_UC[c]) if table.present_UC[c] else None for c in row] for row in cells],
        "achievable": {
            "linears": [low["linear_bpw"], high["linear_bpw"]],
            "file": [low["file_bpw"], high["file_bpw"]],
            "bytes": [low["bytes"], high["bytes"]],
        },
        "asked": costs.spec.budget.model_dump(mode="json", exclude_defaults=True),
    }


def answer(given: Pinned, budget: Budget) -> dict[str, Any]:
    """The plan under a budget, its exact size, its predicted KL with its proof, its baselines, and what more buys."""
    check_budget(budget, given.costs.sizing, given.allowed)
    limits = byte_limits(budget, given.costs.sizing)
    solution = _within(given, budget, limits)
    choice_U = solution.choice_U
    capacity = given.problem.bytes_of(choice_U)
    if budget.max_predicted_kl is None and limits:
        capacity = max(capacity, min(_capacity(given, limit) for limit in limits))
    whole = given.problem.plan_of(choice_U)
    return {
        **_point(given, choice_U),
        "plan": [whole[u.name] for u in given.costs.table.units],
        "gap": solution.gap,
        "proof": solution.proof,
        **_baselines(given, capacity),
        "next": _more(given, choice_U),
    }


def _allocator(given: Pinned) -> Allocator:
    """One limit is closed exactly in milliseconds without a solver; with several the recipe's own allocator decides."""
    return given.spec.allocator if given.problem.rows else Lagrangian(kind="lagrangian")


def _capacity(given: Pinned, limit: ByteLimit) -> int:
    """Bytes that a limit leaves for the units."""
    least_U = given.ends[0]
    return limit.limit - (limit.used(given.problem.plan_of(least_U)) - given.problem.bytes_of(least_U))


def _within(given: Pinned, budget: Budget, limits: list[ByteLimit]) -> Solution:
    """As the allocate step: bytes are taken off while the file, whose header depends on the plan, is too large."""
    problem, allocator = replace(given.problem, limit_score=budget.max_predicted_kl), _allocator(given)
    if not limits:
        return solve(problem, allocator)
    floor, capacity = problem.bytes_of(given.ends[0]), min(_capacity(given, limit) for limit in limits)
    for extra in TIGHTEN:
        solution = solve(replace(problem, limit_bytes=max(capacity, floor)), allocator)
        whole = problem.plan_of(solution.choice_U)
        over = max(limit.used(whole) - limit.limit for limit in limits)
        if over <= 0:
            break
        capacity -= over + extra
    return solution


def _point(given: Pinned, choice_U: Choice) -> dict[str, Any]:
    return {**_sizes(given, choice_U, given.file(choice_U)), "kl": given.problem.score_of(choice_U)}


def _sizes(given: Pinned, choice_U: Choice, size: int) -> dict[str, Any]:
    sizing = given.costs.sizing
    linears = sizing.linears(given.problem.plan_of(choice_U))
    return {
        "bytes": size,
        "linear_bytes": linears,
        "linear_bpw": 8 * linears / sizing.linear_weights,
        "file_bpw": 8 * size / sizing.all_weights,
    }


def _baselines(given: Pinned, capacity: int) -> dict[str, Any]:
    """The best uniform format and greedy within the same bytes of units."""
    best = uniform.best(given.problem, lambda choice_U: given.problem.bytes_of(choice_U) <= capacity)
    greedy_U = greedy.solve(without_dominated(program_of(replace(given.problem, limit_bytes=capacity))))
    return {
        "uniform": best and {"format": best.format, **_point(given, best.choice_U)},
        "greedy": None if greedy_U is None else _point(given, greedy_U),
    }


def _more(given: Pinned, choice_U: Choice) -> list[dict[str, Any]]:
    """What a round amount near 1 % of the plan, and 10 MB, would buy: solved, not extrapolated."""
    size, kl = given.problem.bytes_of(choice_U), given.problem.score_of(choice_U)
    largest = given.problem.bytes_of(given.ends[1])
    near = 10 ** math.floor(math.log10(max(size / 100, 1)))
    found = []
    for amount in dict.fromkeys((near, TEN_MEGABYTES)):
        more_U = given.solved(size + amount, _allocator(given)).choice_U
        bought = kl - given.problem.score_of(more_U)
        found.append({"bytes": amount, "kl": bought, "everything": size + amount >= largest})
    return found


def front(given: Pinned) -> dict[str, Any]:
    """Plans from the smallest to the largest, greedy at the same sizes, every uniform format.

    Sizes are those of the whole file, spaced evenly in its logarithm, and right to within some bytes of header.
    """
    low, high = (given.problem.bytes_of(choice_U) + given.around for choice_U in given.ends)
    wholes = dict.fromkeys(round(low * (high / low) ** (k / (POINTS - 1))) for k in range(POINTS))
    mixed = [given.solved(given.units(whole), _allocator(given)).choice_U for whole in wholes]
    greedily = [
        greedy.solve(without_dominated(program_of(replace(given.problem, limit_bytes=given.units(whole)))))
        for whole in wholes
    ]
    uniforms = [{"format": u.format, **_near(given, u.choice_U)} for u in uniform.every(given.problem)]
    return {
        "mixed": _distinct([_near(given, choice_U) for choice_U in mixed]),
        "greedy": _distinct([_near(given, choice_U) for choice_U in greedily if choice_U is not None]),
        "uniform": sorted(uniforms, key=lambda point: int(point["bytes"])),
    }


def _near(given: Pinned, choice_U: Choice) -> dict[str, Any]:
    sizes = _sizes(given, choice_U, given.problem.bytes_of(choice_U) + given.around)
    return {**sizes, "kl": given.problem.score_of(choice_U)}


def _distinct(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One point per size."""
    return list({point["bytes"]: point for point in points}.values())
