"""How sure a plan is: scores are resampled over documents and the allocation is solved again.

U units, C formats, D documents, B resamples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from steps.allocate import core, greedy
from steps.allocate.lagrangian import Relaxed, priced, relax
from steps.allocate.problem import Choice, Floats, Problem
from steps.allocate.program import Program, program_of, without_dominated

EXACT_UNITS = 2_000
"""Up to so many units each resample is also filled and closed exactly; beyond, one unit's rounding weighs nothing."""
STATES = 500
LEVEL = (2.5, 97.5)
"""Percentiles of the reported intervals."""


@dataclass(frozen=True)
class Resampled:
    """Choices per resample [B, U], and the weight of each document in it [B, D] (rows sum to 1)."""

    choice_BU: Choice
    share_BD: Floats


def shares(tokens_D: Floats, resamples: int, seed: int) -> Floats:
    """Weights of documents drawn with replacement, each counting by its tokens, [B, D]."""
    rng, documents = np.random.default_rng(seed), len(tokens_D)
    drawn_BD = rng.integers(0, documents, (resamples, documents))
    count_BD = np.stack([np.bincount(row, minlength=documents) for row in drawn_BD])
    weight_BD = count_BD * tokens_D
    return np.asarray(weight_BD / weight_BD.sum(axis=1, keepdims=True))


def resample(problem: Problem, limit_bytes: int, relaxed: Relaxed, resamples: int, seed: int) -> Resampled | None:
    """Solve for least score within `limit_bytes` under resampled scores; None without scores per document.

    Extra rows are held at the prices of the plan's own relaxation.
    """
    if problem.document_UCD is None or problem.tokens_D is None or resamples == 0:
        return None
    share_BD = shares(problem.tokens_D, resamples, seed)
    programs = _programs(replace(problem, limit_bytes=limit_bytes, limit_score=None), relaxed, share_BD)
    return Resampled(np.stack([_solve(program) for program in programs]), share_BD)


def _programs(problem: Problem, relaxed: Relaxed, share_BD: Floats) -> Iterator[Program]:
    assert problem.document_UCD is not None
    for share_D in share_BD:
        score_UC = np.where(problem.allowed_UC, problem.document_UCD @ share_D, 0.0)
        program = program_of(replace(problem, score_UC=score_UC))
        price_K = np.concatenate([[0.0], relaxed.price_K[1:]])
        yield without_dominated(Program(priced(program, price_K), program.weight_KUC[:1], program.capacity_K[:1]))


def _solve(program: Program) -> Choice:
    relaxed = relax(program)
    if len(relaxed.base_U) > EXACT_UNITS:
        return relaxed.base_U
    return core.close(program, relaxed, greedy.fill(program, relaxed.base_U), STATES)[0]


def agreement(problem: Problem, choice_U: Choice, resampled: Resampled) -> dict[str, Any]:
    """Per unit, the share of resamples that choose as the plan does, and the share of each format chosen."""
    units = {}
    for u, name in enumerate(problem.units):
        count_C = np.bincount(resampled.choice_BU[:, u], minlength=len(problem.formats)) / len(resampled.choice_BU)
        chosen = {f: round(float(s), 6) for f, s in zip(problem.formats, count_C, strict=True) if s > 0}
        units[name] = {"agrees": chosen.get(problem.formats[int(choice_U[u])], 0.0), "shares": chosen}
    mean = float(np.mean([u["agrees"] for u in units.values()]))
    return {
        "resamples": len(resampled.choice_BU),
        "documents": resampled.share_BD.shape[1],
        "agreement": round(mean, 6),
        "units": units,
    }


def interval(
    problem: Problem, choice_U: Choice, resampled: Resampled, other_U: Choice | None = None
) -> dict[str, float]:
    """Predicted KL of a plan (minus that of another, on the same documents) with its bootstrap interval."""
    assert problem.document_UCD is not None and problem.tokens_D is not None
    index = np.arange(len(choice_U))
    score_D = problem.document_UCD[index, choice_U].sum(axis=0)
    value = problem.score_of(choice_U)
    if other_U is None and problem.offset_D is not None:
        score_D = score_D + problem.offset_D
    if other_U is not None:
        score_D = score_D - problem.document_UCD[index, other_U].sum(axis=0)
        value -= problem.score_of(other_U)
    low, high = np.percentile(resampled.share_BD @ score_D, LEVEL)
    return {"value": value, "low": float(low), "high": float(high)}
