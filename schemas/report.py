"""The build report: what was asked, what came out, what was measured, and where everything is."""

from __future__ import annotations

from typing import Literal

from schemas.artifact import Digest
from schemas.base import Spec

NodeStatus = Literal["computed", "cached", "partial"]


class Interval(Spec):
    """A value with its 95 % bootstrap interval over documents."""

    value: float
    low: float
    high: float


class Measured(Spec):
    """One model measured on the evaluation text. `bytes` is the size of its packed weights."""

    bytes: int
    kl: Interval
    ppl: Interval
    top1: Interval


class Contrast(Spec):
    """Paired comparison of two models on the same documents: kl of `first` minus kl of `second`, and their ratio."""

    first: str
    second: str
    difference: Interval
    ratio: Interval
    verdict: Literal["better", "worse", "no difference"]


class BitsPerWeight(Spec):
    """True bits per weight: over the quantized linears, and of the whole file over all weights of the model."""

    linear: float
    total: float


class Bytes(Spec):
    """Predicted and actual size of the packed weights file; `header` is the part of it that is safetensors header."""

    predicted: int
    actual: int
    header: int


class AllocationRow(Spec):
    """What one unit got."""

    unit: str
    format: str
    bytes: int
    score: float


class NodeRow(Spec):
    """What one node of the recipe did in this run."""

    id: str
    step: str
    status: NodeStatus
    seconds: float
    key: Digest
    units_computed: int
    units_cached: int
    outputs: dict[str, Digest]


class GateRow(Spec):
    """One gate; `value` is what was measured, None when it could not be."""

    name: str
    limit: float | str
    value: float | str | None
    passed: bool


class Packed(Spec):
    """Where the packed folder is, and the digest of its listing of files."""

    path: str
    digest: Digest


class Speed(Spec):
    """Throughput of the packed model in the loader that verified it, with the peak memory of that process."""

    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    peak_memory_bytes: int


class Distilled(Spec):
    """What training did: KL on its own held-out slice before and after, the step kept, tokens seen."""

    kl_before: float
    kl_after: float
    step_kept: int
    tokens: int


class Report(Spec):
    """Everything about one build. Its JSON schema is tests/golden/report.schema.json."""

    version: Literal[1] = 1
    build_digest: Digest
    recipe_digest: Digest
    recipe: str
    recipe_document: dict[str, object]
    """The explicit recipe, of which `recipe_digest` is the digest: enough to run it again."""
    model: str
    created: str
    seconds: float
    bpw: BitsPerWeight
    bytes: Bytes
    original: Measured
    mixed: Measured
    allocated: Measured
    """The chosen plan before any training, for a fair comparison with the baselines."""
    uniform: Measured | None
    uniform_format: str | None
    greedy: Measured
    contrasts: tuple[Contrast, ...]
    predicted_kl: float
    distilled: Distilled | None
    allocation: tuple[AllocationRow, ...]
    certificate: dict[str, object]
    nodes: tuple[NodeRow, ...]
    gates: tuple[GateRow, ...]
    passed: bool
    packed: Packed
    speed: Speed
    device: str
    notes: tuple[str, ...]
    """What a reader must know: capped lengths, raised damping, skipped text, repaired scores."""
    libraries: dict[str, str]
    mlflow_run_id: str | None
    prefect_flow_run_id: str | None
