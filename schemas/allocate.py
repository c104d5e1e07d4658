"""Bit allocation: one format per unit under a budget."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from schemas.base import Spec
from schemas.budget import Budget
from schemas.pack import PackFormat
from schemas.pattern import Pattern
from schemas.quantize import Bits, FormatField


class ILP(Spec):
    """Integer program through PuLP: HiGHS, else CBC; one thread, relative gap stated.

    Sent to the solver are only the choices that reduced costs leave open, and nothing if the relaxation alone proves
    the gap. With no solver installed, or one that does not finish, the Lagrangian plan stands with its own proof.
    """

    kind: Literal["ilp"]
    gap: float = Field(default=1e-4, ge=0, lt=1)
    seconds: float = Field(default=60, gt=0)
    seed: int = Field(default=0, ge=0, lt=2**31)


class Lagrangian(Spec):
    """Convex hulls and a price per byte, a greedy fill, then an exact program over what is still open. No solver."""

    kind: Literal["lagrangian"]


class DynamicProgram(Spec):
    """Exact Pareto dynamic program over all units; needs no solver; one limit."""

    kind: Literal["dp"]


class Greedy(Spec):
    """Best damage per byte first, from the smallest assignment up."""

    kind: Literal["greedy"]


class Waterfill(Spec):
    """Closed-form bits under score = c * 4^-bits (BAQ), rounded to the formats on offer; one limit on bytes."""

    kind: Literal["waterfill"]


class RankCut(Spec):
    """The units that `low` would damage most get `high`, as many as fit; one limit on bytes."""

    kind: Literal["rankcut"]
    high: FormatField
    low: FormatField


Allocator = Annotated[ILP | Lagrangian | DynamicProgram | Greedy | Waterfill | RankCut, Field(discriminator="kind")]


class Pin(Spec):
    """What may be chosen for the units whose name, or a member's name, matches `units`.

    All conditions given must hold, and all pins that match a unit. Bits are those of a code.
    """

    units: Pattern
    formats: tuple[FormatField, ...] = ()
    """Only these."""
    exclude: tuple[FormatField, ...] = ()
    """None of these."""
    min_bits: Bits | None = None
    max_bits: Bits | None = None

    @model_validator(mode="after")
    def _some_condition(self) -> Pin:
        if not self.formats and not self.exclude and self.min_bits is None and self.max_bits is None:
            raise ValueError("a pin needs at least one of formats, exclude, min_bits, max_bits")
        return self


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
    seed: int = Field(default=0, ge=0)


class Select(Spec):
    """Take each unit's quantized tensors in the format the plan chose."""

    step: Literal["select"]
    plan: Literal["plan", "uniform", "greedy"] = "plan"
