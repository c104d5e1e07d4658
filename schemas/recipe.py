"""A recipe: the explicit DAG of steps, and the short form that expands to it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from schemas.allocate import ILP, Allocate, Allocator, Pin, Select
from schemas.base import Spec
from schemas.budget import Budget
from schemas.calibrate import Calibrate, ModelSource, Reference, TextSource, Tokenize
from schemas.distill import Distill
from schemas.pack import Pack, PackFormat
from schemas.quantize import FormatField, Quantize, Rounding
from schemas.sensitivity import Fisher, KLProbe
from schemas.verify import Evaluate, Gates, Verify

StepSpec = Annotated[
    ModelSource
    | TextSource
    | Tokenize
    | Calibrate
    | Reference
    | Quantize
    | KLProbe
    | Fisher
    | Allocate
    | Select
    | Distill
    | Evaluate
    | Pack
    | Verify,
    Field(discriminator="step"),
]

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,63}$")]


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


class ModelField(Spec):
    """Where the original model is. `builtin:demo` is the model shipped with Bitsmith."""

    source: str
    revision: str | None = None


class TextFields(Spec):
    """Texts and how much of them is used. Sources are a file, a folder, JSONL, `builtin:calibrate`, `builtin:evaluate`.

    `length` is the window in tokens. Calibration reads the first `calibrate_windows` windows of the calibration text,
    distillation the `distill_windows` after them; sensitivity scores use `score_windows` document windows of it.
    """

    calibrate: str = "builtin:calibrate"
    evaluate: str = "builtin:evaluate"
    field: str = "text"
    length: int = Field(default=256, ge=16)
    calibrate_windows: int = Field(default=128, ge=1)
    score_windows: int = Field(default=32, ge=2)
    distill_windows: int = Field(default=256, ge=2)
    evaluate_windows: int = Field(default=128, ge=2)
    seed: int = 0


class DistillFields(Spec):
    """Training of scales and norms after selection; see the distill step."""

    steps: int = Field(default=30, ge=1)
    batch: int = Field(default=8, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)


Method = Literal["gptq", "rtn"]


class ShortRecipe(Spec):
    """The short form, with defaults; `pipelines/expand.py` turns it into a Recipe."""

    name: Name
    model: ModelField
    text: TextFields = TextFields()
    budget: Budget
    formats: tuple[FormatField, ...] = Field(min_length=1)
    method: Method = "gptq"
    rounding: Rounding | None = None
    """Given, it replaces the method's own parts."""
    sensitivity: Literal["auto", "kl_probe", "fisher"] = "auto"
    """`auto` is kl_probe up to 100 million weights in the linears, fisher beyond."""
    allocator: Allocator = ILP(kind="ilp")
    pins: tuple[Pin, ...] = ()
    distill: DistillFields | None = None
    pack: PackFormat = "compressed-tensors"
    gates: Gates = Gates()
    batch: int = Field(default=16, ge=1)
    """Windows run through a block at once, in every step."""

    @field_validator("formats")
    @classmethod
    def _once(cls, formats: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(formats)) != len(formats):
            raise ValueError("a format is listed twice")
        return formats
