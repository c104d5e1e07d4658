"""Bit allocation: one format per unit under a budget."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from schemas.base import Spec
from schemas.budget import Budget
from schemas.format import Bits, FormatField
from schemas.pack import PackFormat
from schemas.pattern import Pattern


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


class Uniform(Spec):
    """One format wherever pins allow it, elsewhere what is nearest: a baseline, within a limit on bytes."""

    kind: Literal["uniform"]
    format: FormatField


class Given(Spec):
    """A plan made elsewhere, or by hand: it is checked and sized, and measured like any other."""

    kind: Literal["given"]
    plan: dict[str, str] = Field(min_length=1)
    """Unit -> format. In a recipe file `file: PLAN.json` stands for it: what `plan --json` or `run --json` wrote."""


class Random(Spec):
    """A random plan within the limits: the baseline that knows nothing."""

    kind: Literal["random"]
    seed: int = Field(default=0, ge=0)


Allocator = Annotated[
    ILP | Lagrangian | DynamicProgram | Greedy | Waterfill | RankCut | Uniform | Random | Given,
    Field(discriminator="kind"),
]


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
    shard_bytes: int | None = Field(default=None, ge=1)
    """As in `Packing`: every file has a header of its own."""
    bootstrap: int = Field(default=100, ge=0)
    """Resamples of the scores over documents, from which the plan's stability is reported."""
    seed: int = Field(default=0, ge=0)


class Select(Spec):
    """Take each unit's quantized tensors in the format the plan chose."""

    step: Literal["select"]
    plan: Literal["plan", "uniform", "greedy"] = "plan"


class Choose(Spec):
    """Of two plans within the same budget, keep the one of lower KL on text that neither was made from.

    Whether the difference means anything is said by its paired 95 % interval over documents.
    """

    step: Literal["choose"]
    bootstrap: int = Field(default=2000, ge=100)
    seed: int = 0


class Additivity(Spec):
    """A plan's predicted KL (the sum of its units' scores) against its KL measured on the same text, paired."""

    step: Literal["additivity"]
    bootstrap: int = Field(default=2000, ge=100)
    seed: int = 0
