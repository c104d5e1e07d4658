"""A recipe: the explicit DAG of steps, and the short form that expands to it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from schemas.allocate import ILP, Additivity, Allocate, Allocator, Choose, Pin, Select
from schemas.base import Spec
from schemas.budget import Budget
from schemas.calibrate import LEAST_LENGTH, Calibrate, ModelSource, Reference, TextSource, Tokenize
from schemas.distill import (
    Blocks,
    Codes,
    Distill,
    HeldOut,
    Join,
    Optimizer,
    Precision,
    Rates,
    Recode,
    Reconstruct,
    Schedule,
    Term,
    Whole,
)
from schemas.format import FormatField
from schemas.pack import Engine, Pack, Packing, PackingsField
from schemas.pattern import Pattern
from schemas.quantize import Quantize, Rounding
from schemas.sensitivity import Metric, MetricName, PairProbe, Rescore
from schemas.units import KEEP, Ends, EndsField, Grouping, Treatment
from schemas.verify import Evaluate, Gates, Generate, Loading, Measure, Verify

StepSpec = Annotated[
    ModelSource
    | TextSource
    | Tokenize
    | Calibrate
    | Reference
    | Quantize
    | Metric
    | PairProbe
    | Rescore
    | Allocate
    | Choose
    | Additivity
    | Select
    | Distill
    | Recode
    | Reconstruct
    | Join
    | Evaluate
    | Pack
    | Measure
    | Generate
    | Verify,
    Field(discriminator="step"),
]

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,63}$")]


Source = Annotated[str, Field(min_length=1)]
"""A file, a folder, an id or a URL. Nothing is not the current folder."""


class Node(Spec):
    """One use of a step. In YAML the step's fields stand beside `inputs`, not under `spec`."""

    spec: StepSpec
    inputs: dict[str, str] = {}
    """Port -> `node` or `node.port` it is read from."""

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, data: Any) -> Any:
        if isinstance(data, dict) and "spec" not in data:
            return {"inputs": data.get("inputs", {}), "spec": {k: v for k, v in data.items() if k != "inputs"}}
        return data


class Recipe(Spec):
    """The explicit form: a DAG of nodes. Node names are for people and enter no key."""

    name: Name
    nodes: dict[Name, Node] = Field(min_length=1)


DomainName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")]


class ModelField(Spec):
    """Where the original model is. `builtin:demo` is the model shipped with Bitsmith."""

    source: Source
    revision: str | None = None


class TextFields(Spec):
    """Texts and how much of them is used. Sources are a file, a folder, JSONL, `builtin:calibrate`, `builtin:evaluate`.

    `length` is the window in tokens. Calibration reads the first `calibrate_windows` windows of the calibration text,
    distillation windows after them, unless `distill` names a text of its own; sensitivity scores use `score_windows`
    document windows of it.
    With `rounds: 2` the plans are compared on `choose_windows` windows of the text `choose`, or where there is none, of
    a fifth of the calibration documents, which then nothing else reads.
    """

    calibrate: Source = "builtin:calibrate"
    evaluate: Source = "builtin:evaluate"
    field: str = "text"
    length: int = Field(default=256, ge=LEAST_LENGTH)
    calibrate_windows: int = Field(default=128, ge=1)
    score_windows: int = Field(default=32, ge=2)
    evaluate_windows: int = Field(default=128, ge=2)
    choose: Source | None = None
    choose_windows: int = Field(default=128, ge=2)
    domains: dict[DomainName, Source] = {}
    """Further texts to measure the packed file on, by name; nothing is chosen or gated by them."""
    domain_windows: int = Field(default=64, ge=2)
    seed: int = Field(default=0, ge=-(2**63), lt=2**63)


Refinement = Literal["recode", "latent", "scales", "autoround", "discquant", "adaquant", "pdquant", "bitdistiller"]


class Streamed(Spec):
    """One block at a time in memory, each cached by itself; for what matches block outputs alone."""

    kind: Literal["stream"]


class RecodeFields(Spec):
    """What differs from the defaults of `recode`, which chooses codes again by curvature; see schemas/distill.py."""

    windows: int | None = Field(default=None, ge=1)
    samples: int | None = Field(default=None, ge=1)
    damping: float | None = Field(default=None, gt=0)
    passes: int | None = Field(default=None, ge=1)


class DistillFields(Spec):
    """Refinement after selection: a row of `pipelines/methods/refine.py`, and what differs from it."""

    method: Refinement | None = None
    """Without one, that of the recipe's `method` if it is about refinement, else `latent`."""
    recode: bool | RecodeFields | None = None
    """Choose codes again by curvature before training; without a word, as the method's row has it."""
    text: Source | None = None
    """Source of the text; without one, the calibration text beyond the windows that calibrate."""
    scope: Annotated[Whole | Blocks | Streamed, Field(discriminator="kind")] | None = None
    """`whole`, `blocks` and `stream` stand for their kind alone."""
    codes: Codes | None = None
    objective: tuple[Term, ...] | None = Field(default=None, min_length=1)
    optimizer: Optimizer | None = None
    schedule: Schedule | None = None
    rates: Rates | None = None
    """What has no rate is not trained."""
    tokens: int | None = Field(default=None, ge=1)
    batch: int | None = Field(default=None, ge=1)
    held_out: HeldOut | None = None
    check_every: int | None = Field(default=None, ge=1)
    patience: int | None = Field(default=None, ge=1)
    precision: Precision | None = None

    @field_validator("scope", mode="before")
    @classmethod
    def _word(cls, scope: Any) -> Any:
        return {"kind": scope} if isinstance(scope, str) else scope


Method = Literal["gptq", "rtn", "autoround", "discquant", "adaquant", "pdquant", "bitdistiller"]
"""gptq and rtn are about candidates alone; the others start from candidates rounded to nearest and refine the plan."""


class ShortRecipe(Spec):
    """The short form, with defaults; `pipelines/expand.py` turns it into a Recipe."""

    name: Name
    model: ModelField
    text: TextFields = TextFields()
    budget: Budget
    formats: tuple[FormatField, ...] = Field(min_length=1)
    method: Method = "gptq"
    rounding: Rounding | None = None
    """Parts in place of the method's own; what is not said stays as the method has it."""
    sensitivity: MetricName = "fisher_rows"
    allocator: Allocator = ILP(kind="ilp")
    rounds: Literal[1, 2] = 1
    """2: score again around the first plan, solve again, keep what measures better on text held out for choosing."""
    pairs: bool = False
    """In a second round, also measure how neighbouring units interact; formats far from the plan's are then offered."""
    pins: tuple[Pin, ...] = ()
    units: Grouping = "fused"
    """How decoder blocks are cut into what gets one format: see `Units`."""
    embeddings: EndsField = Ends()
    """`keep`, `allocate` (the allocator chooses), the name of a format, or `embedding` and `head` apart."""
    router: Treatment = KEEP
    """The same for the routers of a mixture of experts."""
    keep: tuple[Pattern, ...] = ()
    """Units that are not quantized, by glob or `re:` and a regular expression."""
    distill: DistillFields | None = None
    pack: PackingsField = (Packing(),)
    """A file format, one with its settings, or a list of these."""
    target: Engine | None = None
    """Offer only formats that this engine runs from the (first) file format."""
    gates: Gates = Gates()
    samples: int = Field(default=2, ge=0)
    """Beginnings of evaluation windows that the original and the packed model continue, side by side."""
    load: Loading = "auto"
    """How the packed file is verified: whole, or block by block, which times nothing and writes no samples; `auto` is
    whole up to a billion weights."""
    batch: int = Field(default=16, ge=1)
    """Windows run through a block at once, in every step."""

    @field_validator("formats")
    @classmethod
    def _once(cls, formats: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(formats)) != len(formats):
            raise ValueError("a format is listed twice")
        return formats

    @model_validator(mode="after")
    def _second_round(self) -> ShortRecipe:
        if self.rounds == 2 and self.budget.max_predicted_kl is not None:
            raise ValueError("a second round keeps the plan of lower KL, but max_predicted_kl asks for fewest bytes")
        if self.pairs and self.rounds == 1:
            raise ValueError("pairs are measured for a second round: rounds must be 2")
        return self
