"""The evidence beside a plan: what was proven and how, what binds, what more bytes would buy, what baselines predict.

Plain JSON, the same for the same inputs. K limits.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from steps.allocate import greedy, random
from steps.allocate.build import Solution
from steps.allocate.plan import Planned
from steps.allocate.problem import Choice, Problem
from steps.allocate.program import program_of, without_dominated
from steps.allocate.stability import Resampled, agreement, interval

RANDOM_PLANS = 32
UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("bytes", 1.0))


def certificate(planned: Planned, allocator: str, resampled: Resampled | None, seed: int) -> dict[str, Any]:
    """Everything there is to say about the plan, without the plan itself."""
    problem, solution = planned.problem, planned.solution
    return {
        "allocator": allocator,
        "minimise": problem.minimise,
        "objective": solution.value,
        "bound": solution.bound,
        "gap": solution.gap,
        "proof": solution.proof,
        "solver": solution.solver,
        "limits": limits(problem, solution),
        "shadow_price": shadow_price(problem, solution),
        "baselines": baselines(planned, seed),
        **_stability(planned, resampled),
        "non_monotone_units": non_monotone(problem),
        "notes": [*solution.notes],
    }


def limits(problem: Problem, solution: Solution) -> list[dict[str, Any]]:
    """Every limit: what it is, what is used, its price (objective per unit of it), and whether it binds."""
    choice_U, price_K = solution.choice_U, solution.relaxed.price_K.tolist()
    rows = []
    if problem.limit_score is not None:
        rows.append(("max_predicted_kl", problem.limit_score, problem.score_of(choice_U), "nats per token", price_K[0]))
    if problem.limit_bytes is not None:
        price = price_K[0] if problem.limit_score is None else 0.0
        rows.append((f"bytes of {problem.counted}", problem.limit_bytes, problem.bytes_of(choice_U), "bytes", price))
    for row, price in zip(problem.rows, price_K[1:], strict=True):
        used = math.fsum(row.cost_UC[np.arange(len(choice_U)), choice_U].tolist())
        rows.append((row.name, row.limit, used, row.unit, price))
    keys = ("name", "limit", "used", "unit", "price")
    return [{**dict(zip(keys, r, strict=True)), "slack": r[1] - r[2], "binds": r[4] > 0} for r in rows]


def shadow_price(problem: Problem, solution: Solution) -> dict[str, Any]:
    """KL per byte at the margin, from the relaxation, and a sentence about a round amount near 1 % of the plan."""
    price = float(solution.relaxed.price_K[0])
    if problem.limit_score is not None:
        price = 1.0 / price if price > 0 else 0.0
    if price <= 0 or (problem.limit_score is None and problem.limit_bytes is None):
        return {"kl_per_byte": 0.0, "text": _nothing(problem, solution)}
    amount = 10.0 ** math.floor(math.log10(max(problem.bytes_of(solution.choice_U) / 100, 1.0)))
    unit, size = next((u, s) for u, s in UNITS if amount >= s)
    return {"kl_per_byte": price, "text": f"{amount / size:.0f} {unit} more buys {price * amount:.2g} KL"}


def _nothing(problem: Problem, solution: Solution) -> str:
    prices = solution.relaxed.price_K[1:].tolist()
    others = [row.name for row, price in zip(problem.rows, prices, strict=True) if price > 0]
    if others:
        return f"not the size of the whole binds, but {', '.join(others)}"
    return "the limit does not bind: more bytes buy nothing"


def baselines(planned: Planned, seed: int) -> dict[str, Any]:
    """Predicted KL of the best uniform format, of greedy and of random plans, at no more bytes than the limit."""
    problem, best, greedy_U = planned.baseline, planned.uniform, planned.greedy_U
    return {
        "limit_bytes": problem.limit_bytes,
        "uniform": best
        and {**_facts(problem, best.choice_U), "format": best.format, "elsewhere": list(best.elsewhere)},
        "greedy": None if greedy_U is None else _facts(problem, greedy_U),
        "random": _random(problem, seed),
    }


def _facts(problem: Problem, choice_U: Choice) -> dict[str, Any]:
    return {"score": problem.score_of(choice_U), "bytes": problem.bytes_of(choice_U)}


def _random(problem: Problem, seed: int) -> dict[str, Any] | None:
    program = program_of(problem)
    start_U = greedy.feasible_start(without_dominated(program))
    if start_U is None:
        return None
    plans = random.plans(program, start_U, RANDOM_PLANS, seed)
    scores = [problem.score_of(choice_U) for choice_U in plans]
    sizes = [problem.bytes_of(choice_U) for choice_U in plans]
    return {
        "samples": len(scores),
        "mean_score": math.fsum(scores) / len(scores),
        "best_score": min(scores),
        "mean_bytes": sum(sizes) / len(sizes),
    }


def _stability(planned: Planned, resampled: Resampled | None) -> dict[str, Any]:
    """How the plan fares when the documents are resampled; None where scores have no documents."""
    if resampled is None:
        return {"predicted_interval": None, "uniform_minus_plan": None, "stability": None}
    problem, choice_U, best = planned.problem, planned.solution.choice_U, planned.uniform
    return {
        "predicted_interval": interval(problem, choice_U, resampled),
        "uniform_minus_plan": best and interval(problem, best.choice_U, resampled, choice_U),
        "stability": agreement(problem, choice_U, resampled),
    }


def non_monotone(problem: Problem) -> int:
    """Units for which some allowed format of more bytes scores worse: noise, or formats that are simply dominated."""
    count = 0
    for bytes_C, score_C, allowed_C in zip(problem.bytes_UC, problem.score_UC, problem.allowed_UC, strict=True):
        order = np.lexsort((-score_C[allowed_C], bytes_C[allowed_C]))
        count += bool((np.diff(score_C[allowed_C][order]) > 0).any())
    return count
