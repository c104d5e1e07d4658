"""Bit allocation: one format per unit under a budget."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from schemas.base import Spec
from schemas.budget import Budget
from schemas.pack import PackFormat
from schemas.quantize import FormatField


class ILP(Spec):
    """Integer program through PuLP: HiGHS, else CBC; one thread, relative gap stated."""

    kind: Literal["ilp"]
    gap: float = Field(default=1e-4, ge=0, lt=1)
    seconds: float = Field(default=60, gt=0)
    seed: int = 0


class Lagrangian(Spec):
    """Convex hulls and a multiplier, then a greedy fill of what is left; the fast path for very many units."""

    kind: Literal["lagrangian"]


class DynamicProgram(Spec):
    """Exact Pareto dynamic program; needs no solver."""

    kind: Literal["dp"]


class Greedy(Spec):
    """Best damage per byte first, from the smallest assignment up."""

    kind: Literal["greedy"]


Allocator = Annotated[ILP | Lagrangian | DynamicProgram | Greedy, Field(discriminator="kind")]


class Pin(Spec):
    """Formats allowed for the units whose name, or a member's name, matches `units` (a glob, or `re:` and a regex)."""

    units: str
    formats: tuple[FormatField, ...] = Field(min_length=1)


class Allocate(Spec):
    """Choose one format per unit: least total score within the budget, with uniform and greedy baselines beside it."""

    step: Literal["allocate"]
    budget: Budget
    allocator: Allocator = ILP(kind="ilp")
    pins: tuple[Pin, ...] = ()
    pack: PackFormat = "compressed-tensors"
    """Bytes are those of this file format."""
    bootstrap: int = Field(default=100, ge=0)
    """Resamples of the scores over documents, from which the plan's stability is reported."""
    seed: int = 0


class Select(Spec):
    """Take each unit's quantized tensors in the format the plan chose."""

    step: Literal["select"]
    plan: Literal["plan", "uniform", "greedy"] = "plan"
