"""Training against the original after the formats are chosen: what is trained, what is matched, over which scope."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from schemas.base import Spec

LEAST_HELD_OUT = 6
"""Windows that can decide: with fewer, all are better by chance in more than 1 of 40 cases (2 ** -5 > 0.025)."""

HeldOut = Annotated[int, Field(ge=LEAST_HELD_OUT)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class StraightThrough(Spec):
    """Latent levels, rounded in every forward pass; the gradient passes straight through the rounding.

    They start at the selection's codes (`codes`), at the original weights moved into the rounding cell of those codes
    (`cell`: the same codes, with a memory of which way each weight was rounded), or at the weights themselves
    (`weights`: round to nearest on the selection's grid).
    """

    kind: Literal["ste"]
    start: Literal["codes", "cell", "weights"] = "codes"


class Box(Spec):
    """Each level between the weight's two neighbours on the grid, x in [0, 1]; see DiscQuant.

    The gradient is (1 - 2y) + clamp(`strength` * gradient of the loss / (12 times the mean squared rounding error),
    +-`clamp`), where y is the weight's own place between its neighbours; after every update x is projected onto [0, 1].
    """

    kind: Literal["box"]
    strength: float = Field(default=200, gt=0)
    clamp: float = Field(default=0.5, gt=0)


class Annealed(Spec):
    """Each level between the weight's two neighbours by a stretched sigmoid that a penalty drives to 0 or 1; AdaRound.

    The penalty `penalty` * sum(1 - |2h - 1|^beta) starts after a share `free` of the steps; beta falls from `first` to
    `last`.
    """

    kind: Literal["annealed"]
    penalty: float = Field(default=0.01, gt=0)
    first: float = Field(default=20, gt=1)
    last: float = Field(default=2, gt=1)
    free: float = Field(default=0.2, ge=0, lt=1)


class Offsets(Spec):
    """An offset within `limit` steps is added to each weight before it is rounded to nearest; AutoRound."""

    kind: Literal["offsets"]
    limit: float = Field(default=0.5, gt=0, le=1)


Codes = Annotated[StraightThrough | Box | Annealed | Offsets, Field(discriminator="kind")]


def _named(factors: Any) -> Any:
    """YAML's whole numbers as the names that JSON has; anything else passes through."""
    if not isinstance(factors, dict):
        return factors
    return {str(key) if type(key) is int else key: value for key, value in factors.items()}


class Rates(Spec):
    """Peak learning rates; what has none is not trained.

    Of codes in steps of the grid, of scales and norms relative to each value, of biases relative to their root mean
    square.
    """

    codes: Annotated[float, Field(gt=0)] | Literal["auto"] | None = None
    """`auto`: 0.2 over the square root of the number of steps, so that noise alone, which Adam makes a walk of one rate
    a step, carries no code over half a step of the grid, however long the training. Of offsets, which go by sign
    descent, twice their limit over the steps: with a rate that falls to 0 each can just reach its limit (AutoRound)."""
    scales: float | None = Field(default=None, gt=0)
    norms: float | None = Field(default=None, gt=0)
    """Norms and biases."""
    by_bits: Annotated[
        dict[Literal["2", "3", "4", "5", "6", "8"], Annotated[float, Field(gt=0)]], BeforeValidator(_named)
    ] = {}
    """Factors on the rate of codes, by the bits of the unit's format; 1 where nothing is said."""

    @model_validator(mode="after")
    def _something(self) -> Rates:
        if self.codes is None and self.scales is None and self.norms is None:
            raise ValueError("nothing is trained: give at least one of codes, scales, norms")
        if self.by_bits and self.codes is None:
            raise ValueError("by_bits are factors on the rate of codes: give codes, too, or leave by_bits out")
        return self


class Adam(Spec):
    """Adam, decoupled from weight decay because there is none."""

    kind: Literal["adam"]
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)


class SignDescent(Spec):
    """A step of the learning rate against the sign of the gradient."""

    kind: Literal["sign"]


Optimizer = Annotated[Adam | SignDescent, Field(discriminator="kind")]


class Schedule(Spec):
    """Linear over a share `warmup` of the steps, then `shape` to 0."""

    warmup: float = Field(default=0.1, ge=0, lt=1)
    shape: Literal["cosine", "linear", "constant"] = "cosine"


class Logits(Spec):
    """Divergence of the model's predictions from the original's, in nats per predicted position.

    forward KL(original || student), reverse KL(student || original), mixed `mix` * reverse + (1 - `mix`) * forward.
    With `top_k`, over the original's k likeliest tokens and all others as one. Both sides are divided by `temperature`.
    """

    kind: Literal["logits"]
    divergence: Literal["forward", "reverse", "mixed"] = "forward"
    mix: float = Field(default=0.5, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=1, gt=0)
    weight: float = Field(default=1, gt=0)

    @model_validator(mode="after")
    def _mixes(self) -> Logits:
        # Not whether it was given: what is written out for a worker or a record has every field.
        if self.divergence != "mixed" and self.mix != Logits.model_fields["mix"].default:
            raise ValueError(f"mix is of `divergence: mixed`, and this one is {self.divergence}: leave mix out")
        return self


class Outputs(Spec):
    """Squared error of the last block's output in scope, relative to the original output's mean square.

    With `fisher`, each hidden dimension is weighted by the mean squared gradient, there, of the log-likelihood of
    labels drawn from the original (mean weight 1).
    """

    kind: Literal["outputs"]
    fisher: bool = False
    weight: float = Field(default=1, gt=0)


Term = Annotated[Logits | Outputs, Field(discriminator="kind")]


class Whole(Spec):
    """All blocks at once, end to end."""

    kind: Literal["whole"]


class Blocks(Spec):
    """Windows of `width` blocks, `stride` apart, first to last.

    A window's input comes from the quantized blocks before it, its target from the original. With a logits term the
    original's own blocks run behind the window.
    """

    kind: Literal["blocks"]
    width: int = Field(default=1, ge=1)
    stride: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _no_gaps(self) -> Blocks:
        if self.stride > self.width:
            raise ValueError(f"stride {self.stride} beyond width {self.width} would leave blocks out")
        return self


Scope = Annotated[Whole | Blocks, Field(discriminator="kind")]


Precision = Literal["auto", "fp32", "bf16"]


class Training(Spec):
    """What both training steps share: see Distill and Reconstruct.

    `held_out` windows of the text (at most a fifth of it, or 6) are never trained on; every `check_every` steps they
    decide which step is kept, and, when `patience` checks in a row were no better, that it is enough.
    """

    codes: Codes = StraightThrough(kind="ste")
    rates: Rates = Rates(codes="auto", scales=1e-3, norms=1e-3)
    optimizer: Optimizer = Adam(kind="adam")
    schedule: Schedule = Schedule()
    tokens: int = Field(default=60_000, ge=1)
    """To train on, each once; text that is too short is used again, with a warning."""
    batch: int = Field(default=4, ge=1)
    """Windows of a step."""
    held_out: HeldOut = 24
    check_every: int = Field(default=10, ge=1)
    patience: int = Field(default=10, ge=1)
    precision: Precision = "auto"
    """Of the blocks' forward and backward passes; what is trained, logits, losses and checks are in fp32 always. `auto`
    is bf16 on a GPU, fp32 elsewhere; the report says which it was."""
    seed: Seed = 0


class Distill(Training):
    """Refine a selection against the original with the whole model in memory; formats and bytes stay.

    A result that is not better than its input on the held-out windows, by the paired interval of the difference, is the
    input.
    """

    step: Literal["distill"]
    objective: tuple[Term, ...] = Field(default=(Logits(kind="logits"),), min_length=1)
    scope: Scope = Whole(kind="whole")

    @model_validator(mode="after")
    def _possible(self) -> Distill:
        if isinstance(self.scope, Whole) and any(isinstance(term, Outputs) for term in self.objective):
            raise ValueError("an `outputs` term needs `scope: {kind: blocks}`")
        return self


class Reconstruct(Training):
    """Refine a selection block by block, streamed: one block in memory, each block cached by itself.

    Inputs come from the blocks already refined, targets from the original; the loss is the outputs term without Fisher
    weights.
    """

    step: Literal["reconstruct"]


class Recode(Spec):
    """Choose a selection's codes again by the curvature of the whole model's predictions; scales and formats stay.

    Curvature of a linear is the Kronecker product of the second moments of its inputs and of the gradients at its
    outputs, for labels drawn from the original's own predictions over `windows` windows of the text; each factor gets
    `damping` times its mean diagonal. Codes are moved by one level, `passes` times at most, wherever that lowers the
    curvature's estimate of the loss. `held_out` windows, the same as those of a training of that seed, decide whether
    the result is kept.
    """

    step: Literal["recode"]
    windows: int = Field(default=96, ge=1)
    samples: int = Field(default=1, ge=1)
    """Labels drawn for each position."""
    damping: float = Field(default=0.03, gt=0, le=1000)
    passes: int = Field(default=800, ge=1)
    batch: int = Field(default=4, ge=1)
    """Windows run through a block at once."""
    held_out: HeldOut = 24
    seed: Seed = 0


class Join(Spec):
    """Put the blocks that `reconstruct` refined into the selection they came from, if that makes the whole better.

    `held_out` windows, the same as those of a training of that seed, decide by the KL of the whole.
    """

    step: Literal["join"]
    batch: int = Field(default=4, ge=1)
    """Windows run through a block at once."""
    held_out: HeldOut = 24
    seed: Seed = 0
