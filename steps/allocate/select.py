"""Select: from all candidates, those that a plan chose. No tensor is read or changed."""

from __future__ import annotations

from collections.abc import Mapping

from schemas.allocate import Select
from schemas.artifact import item_name
from schemas.errors import InputError
from steps.step import Env, Output, Value


def run(spec: Select, inputs: Mapping[str, Value], env: Env) -> dict[str, Output]:
    """inputs candidates, plan -> selection {unit: candidate}. InputError when the plan does not fit the candidates.

    A baseline that does not exist (no uniform format within the budget) gives an empty selection whose plan is None.
    """
    plan = inputs["plan"].meta.get(spec.plan)
    if plan is None:
        if spec.plan == "plan":
            raise InputError("the plan is empty", where="input plan", wanted="meta `plan`: unit -> format")
        return {"selection": Output(meta={"plan": None})}
    candidates = inputs["candidates"].children
    _check_units(plan, candidates)
    children = {unit: candidates[item_name(unit, fmt)] for unit, fmt in plan.items()}
    return {"selection": Output(meta={"plan": dict(plan)}, children=children)}


def _check_units(plan: Mapping[str, str], candidates: Mapping[str, Value]) -> None:
    """Every unit of the candidates is in the plan, no other is, and each has the format chosen."""
    offered: dict[str, list[str]] = {}
    for item in candidates:
        unit, _, fmt = item.rpartition("/")
        offered.setdefault(unit, []).append(fmt)
    if set(plan) != set(offered):
        missing, extra = sorted(set(offered) - set(plan)), sorted(set(plan) - set(offered))
        raise InputError(
            "the plan is not of these candidates' units",
            where="input plan",
            got=f"left out: {', '.join(missing[:4]) or 'none'}; unknown: {', '.join(extra[:4]) or 'none'}",
            wanted=f"each of the {len(offered)} units once",
            fix="use a plan made from these candidates",
        )
    for unit, fmt in plan.items():
        if fmt not in offered[unit]:
            raise InputError(
                "the plan chooses a format that the unit has no candidate of",
                where=unit,
                got=fmt,
                wanted=", ".join(offered[unit]),
                fix="quantize the unit to it, or change the plan",
            )
