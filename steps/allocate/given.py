"""A plan that was made elsewhere, held against the model, the formats, the pins and the limits of this build."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

from schemas.budget import Budget
from schemas.errors import InputError
from steps.allocate.limits import Allowed, byte_limits
from steps.allocate.problem import Choice, Problem, violations
from steps.allocate.rows import extra_rows
from steps.allocate.sizing import Sizing

SHOWN = 4


def choice(problem: Problem, plan: Mapping[str, str]) -> Choice:
    """The plan as a choice. InputError when it leaves out a unit, names another, or a format not on offer, or when it
    breaks a pin or a limit."""
    _check_names(plan, dict.fromkeys(problem.units, problem.formats))
    choice_U = problem.choice_of(plan)
    _refuse_if(violations(problem, choice_U))
    return choice_U


def check(plan: Mapping[str, str], sizing: Sizing, allowed: Allowed, budget: Budget) -> None:
    """The same before anything is computed: a limit on the predicted KL is all that is not looked at."""
    formats = tuple(sizing.formats)
    _check_names(plan, {u.name: tuple(f for f in formats if sizing.has(u, f)) for u in sizing.units})
    wrong = [f"{unit}: format not allowed" for unit, fmt in plan.items() if fmt not in allowed[unit]]
    limits = [limit for limit in byte_limits(budget, sizing) if limit.used(plan) > limit.limit]
    wrong += [f"{limit.read(limit.used(plan))}, limit {limit.read(limit.limit)}" for limit in limits]
    for row in extra_rows(budget, sizing):
        used = sum(float(row.cost_UC[u, formats.index(plan[unit.name])]) for u, unit in enumerate(sizing.units))
        if used > row.capacity:
            wrong.append(f"{row.name}: {used:.10g} {row.unit}, limit {row.limit:.10g}")
    _refuse_if(wrong)


def _check_names(plan: Mapping[str, str], formats: Mapping[str, Sequence[str]]) -> None:
    """Every unit once and no other, each in a format that it is offered."""
    missing, strange = [unit for unit in formats if unit not in plan], [unit for unit in plan if unit not in formats]
    if missing or strange:
        _refuse(
            "the plan is not of this model's units",
            f"left out: {_some(missing)}; unknown: {_some(strange)}",
            f"each of the {len(formats)} units once",
        )
    unknown = [f"{unit}: {fmt}" for unit, fmt in plan.items() if fmt not in formats[unit]]
    if unknown:
        offered = dict.fromkeys(name for names in formats.values() for name in names)
        _refuse("the plan names a format that is not offered", _some(unknown), ", ".join(offered))


def _refuse_if(wrong: list[str]) -> None:
    if wrong:
        _refuse("the plan does not keep what the recipe asks for", _some(wrong), "a plan within pins and limits")


def _refuse(what: str, got: str, wanted: str) -> NoReturn:
    raise InputError(what, where="allocator.plan", got=got, wanted=wanted, fix="mend the plan, or let it be made anew")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) or "none") + more
