"""THE list of steps. A test proves it complete against the recipe's union of specs."""

from __future__ import annotations

from schemas.allocate import Allocate, Select
from schemas.base import Spec
from schemas.calibrate import Calibrate, ModelSource, Reference, TextSource, Tokenize
from schemas.distill import Distill
from schemas.pack import Pack
from schemas.quantize import Quantize
from schemas.sensitivity import Fisher, KLProbe
from schemas.verify import Evaluate, Verify
from steps.step import Step

MODEL_LIBRARIES = ("torch", "transformers")

STEPS: tuple[Step, ...] = (
    Step(
        spec=Tokenize,
        module="steps.calibrate.tokenize",
        inputs={"text": "documents", "model": "model"},
        outputs={"tokens": "tokens"},
        scope="model",
        libraries=("tokenizers",),
        views={"model": "tokenizer"},
    ),
    Step(
        spec=Calibrate,
        module="steps.calibrate.statistics",
        inputs={"model": "model", "tokens": "tokens"},
        outputs={"statistics": "statistics"},
        scope="block",
        libraries=MODEL_LIBRARIES,
        views={"model": "block"},
        carry="hidden",
    ),
    Step(
        spec=Reference,
        module="steps.calibrate.reference",
        inputs={"model": "model", "tokens": "tokens"},
        outputs={"reference": "reference"},
        scope="model",
        libraries=MODEL_LIBRARIES,
    ),
    Step(
        spec=Quantize,
        module="steps.quantize.unit",
        inputs={"model": "model", "statistics": "statistics"},
        outputs={"candidates": "candidates"},
        scope="unit",
        views={"model": "unit", "statistics": "child"},
    ),
    Step(
        spec=KLProbe,
        module="steps.sensitivity.kl_probe",
        inputs={"model": "model", "candidates": "candidates", "tokens": "tokens", "reference": "reference"},
        outputs={"scores": "scores"},
        scope="unit",
        libraries=MODEL_LIBRARIES,
        views={"candidates": "child"},
    ),
    Step(
        spec=Fisher,
        module="steps.sensitivity.fisher",
        inputs={"model": "model", "candidates": "candidates", "tokens": "tokens"},
        outputs={"scores": "scores"},
        scope="model",
        libraries=MODEL_LIBRARIES,
    ),
    Step(
        spec=Allocate,
        module="steps.allocate.run",
        inputs={"model": "model", "candidates": "candidates", "scores": "scores"},
        outputs={"plan": "plan"},
        scope="model",
        libraries=("pulp", "highspy", "numpy"),
        views={"model": "structure"},
    ),
    Step(
        spec=Select,
        module="steps.allocate.select",
        inputs={"candidates": "candidates", "plan": "plan"},
        outputs={"selection": "selection"},
        scope="model",
        libraries=(),
    ),
    Step(
        spec=Distill,
        module="steps.distill.run",
        inputs={"model": "model", "selection": "selection", "tokens": "tokens"},
        outputs={"selection": "selection"},
        scope="model",
        libraries=MODEL_LIBRARIES,
    ),
    Step(
        spec=Evaluate,
        module="steps.verify.evaluate",
        inputs={"model": "model", "selection": "selection", "tokens": "tokens", "reference": "reference"},
        outputs={"evaluation": "evaluation"},
        scope="model",
        libraries=MODEL_LIBRARIES,
    ),
    Step(
        spec=Pack,
        module="steps.pack.run",
        inputs={"model": "model", "selection": "selection"},
        outputs={"packed": "packed"},
        scope="model",
        libraries=("torch", "safetensors"),
    ),
    Step(
        spec=Verify,
        module="steps.verify.run",
        inputs={
            "packed": "packed",
            "model": "model",
            "selection": "selection",
            "tokens": "tokens",
            "reference": "reference",
            "plan": "plan",
            "allocated": "evaluation",
            "uniform": "evaluation",
            "greedy": "evaluation",
        },
        outputs={"verdict": "verdict"},
        scope="model",
        libraries=(*MODEL_LIBRARIES, "compressed-tensors"),
        optional=frozenset({"plan", "allocated", "uniform", "greedy"}),
    ),
)

SOURCES: dict[type[Spec], str] = {ModelSource: "model", TextSource: "documents"}
"""What is read from outside: no step, no trace; its content's digest is taken anew in every run."""


def step_of(spec: Spec) -> Step:
    """The row for a spec."""
    return next(row for row in STEPS if row.spec is type(spec))
