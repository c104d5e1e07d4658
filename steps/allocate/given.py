"""A plan that was made elsewhere, held against the model, the formats, the pins and the limits of this build."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

from schemas.errors import InputError
from steps.allocate.problem import Choice, Problem, violations

SHOWN = 4


def choice(problem: Problem, plan: Mapping[str, str]) -> Choice:
    """The plan as a choice. InputError when it leaves out a unit, names another, or a format not on offer, or when it
    breaks a pin or a limit."""
    missing = [unit for unit in problem.units if unit not in plan]
    strange = [unit for unit in plan if unit not in problem.units]
    if missing or strange:
        _refuse(
            "the plan is not of this model's units",
            f"left out: {_some(missing)}; unknown: {_some(strange)}",
            f"each of the {len(problem.units)} units once",
        )
    unknown = [f"{unit}: {fmt}" for unit, fmt in plan.items() if fmt not in problem.formats]
    if unknown:
        _refuse("the plan names a format that is not offered", _some(unknown), ", ".join(problem.formats))
    choice_U = problem.choice_of(plan)
    if wrong := violations(problem, choice_U):
        _refuse("the plan does not keep what the recipe asks for", _some(wrong), "a plan within pins and limits")
    return choice_U


def _refuse(what: str, got: str, wanted: str) -> NoReturn:
    raise InputError(what, where="allocator.plan", got=got, wanted=wanted, fix="mend the plan, or let it be made anew")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) or "none") + more
