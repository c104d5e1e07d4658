"""THE list of steps. A test proves it complete against the recipe's union of specs."""

from __future__ import annotations

from schemas.allocate import Additivity, Allocate, Choose, Select
from schemas.artifact import PortType
from schemas.base import Spec
from schemas.calibrate import Calibrate, ModelSource, Reference, TextSource, Tokenize
from schemas.distill import Distill, Join, Recode, Reconstruct
from schemas.pack import Pack
from schemas.quantize import Quantize
from schemas.sensitivity import (
    LIM,
    ZD,
    Fisher,
    FisherRows,
    Hutchinson,
    KLProbe,
    OutputError,
    PairProbe,
    Rescore,
    SizeNormalised,
    WeightError,
)
from schemas.verify import Evaluate, Generate, Measure, Verify
from steps.step import Step

MODEL_LIBRARIES = ("torch", "transformers")
PACKED_LIBRARIES = (*MODEL_LIBRARIES, "compressed-tensors")


def _scores(spec: type[Spec], name: str, *ports: PortType, libraries: tuple[str, ...] = ("torch",)) -> Step:
    """A way to score all candidates at once; ports are named by their types."""
    return Step(
        spec=spec,
        module=f"steps.sensitivity.{name}",
        inputs={port: port for port in ports},
        outputs={"scores": "scores"},
        scope="model",
        libraries=libraries,
    )


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
        spec=PairProbe,
        module="steps.sensitivity.pair_probe",
        inputs={
            "model": "model",
            "candidates": "candidates",
            "tokens": "tokens",
            "reference": "reference",
            "plan": "plan",
        },
        outputs={"interactions": "interactions"},
        scope="model",
        libraries=MODEL_LIBRARIES,
        optional=frozenset({"plan"}),
    ),
    _scores(Fisher, "fisher", "model", "candidates", "tokens", libraries=MODEL_LIBRARIES),
    _scores(FisherRows, "fisher_rows", "model", "candidates", "tokens", libraries=MODEL_LIBRARIES),
    _scores(Hutchinson, "hutchinson", "model", "candidates", "tokens", libraries=MODEL_LIBRARIES),
    _scores(OutputError, "output_error", "candidates"),
    _scores(SizeNormalised, "size_normalised", "candidates"),
    _scores(WeightError, "weight_error", "model", "candidates"),
    _scores(LIM, "lim", "model", "candidates", "tokens", libraries=MODEL_LIBRARIES),
    _scores(ZD, "zd", "model", "candidates"),
    Step(
        spec=Rescore,
        module="steps.sensitivity.rescore",
        inputs={
            "model": "model",
            "candidates": "candidates",
            "scores": "scores",
            "tokens": "tokens",
            "reference": "reference",
            "plan": "plan",
            "selection": "selection",
            "interactions": "interactions",
        },
        outputs={"scores": "scores"},
        scope="unit",
        libraries=MODEL_LIBRARIES,
        optional=frozenset({"interactions"}),
        views={"candidates": "child", "scores": "child"},
    ),
    Step(
        spec=Allocate,
        module="steps.allocate.run",
        inputs={"model": "model", "candidates": "candidates", "scores": "scores"},
        outputs={"plan": "plan"},
        scope="model",
        libraries=("pulp", "highspy", "numpy"),
        views={"model": "tokenizer"},
    ),
    Step(
        spec=Choose,
        module="steps.allocate.choose",
        inputs={
            "first": "plan",
            "second": "plan",
            "first_evaluation": "evaluation",
            "second_evaluation": "evaluation",
        },
        outputs={"plan": "plan"},
        scope="model",
    ),
    Step(
        spec=Additivity,
        module="steps.allocate.additivity",
        inputs={"plan": "plan", "scores": "scores", "evaluation": "evaluation"},
        outputs={"additivity": "additivity"},
        scope="model",
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
        spec=Recode,
        module="steps.distill.recode",
        inputs={"model": "model", "selection": "selection", "tokens": "tokens"},
        outputs={"selection": "selection"},
        scope="model",
        libraries=MODEL_LIBRARIES,
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
        spec=Reconstruct,
        module="steps.distill.reconstruct",
        inputs={"model": "model", "selection": "selection", "tokens": "tokens"},
        outputs={"selection": "refined"},
        scope="block",
        libraries=MODEL_LIBRARIES,
        views={"model": "block", "selection": "units"},
        carry="hidden",
    ),
    Step(
        spec=Join,
        module="steps.distill.join",
        inputs={"model": "model", "selection": "selection", "refined": "refined", "tokens": "tokens"},
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
        spec=Measure,
        module="steps.verify.measure",
        inputs={
            "packed": "packed",
            "model": "model",
            "tokens": "tokens",
            "reference": "reference",
            "plan": "plan",
            "uniform": "evaluation",
        },
        outputs={"evaluation": "evaluation"},
        scope="model",
        libraries=PACKED_LIBRARIES,
        optional=frozenset({"plan", "uniform"}),
    ),
    Step(
        spec=Generate,
        module="steps.verify.generate",
        inputs={"packed": "packed", "model": "model", "tokens": "tokens"},
        outputs={"generations": "generations"},
        scope="model",
        libraries=PACKED_LIBRARIES,
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
        libraries=PACKED_LIBRARIES,
        optional=frozenset({"plan", "allocated", "uniform", "greedy"}),
    ),
)

SOURCES: dict[type[Spec], str] = {ModelSource: "model", TextSource: "documents"}
"""What is read from outside: no step, no trace; its content's digest is taken anew in every run."""


def step_of(spec: Spec) -> Step:
    """The row for a spec."""
    return next(row for row in STEPS if row.spec is type(spec))
