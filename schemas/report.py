"""The build report: what was asked, what came out, what was measured, and where everything is."""

from __future__ import annotations

from typing import Literal

from schemas.artifact import Digest
from schemas.base import Spec
from schemas.refined import Distilled, Recoded
from schemas.verify import WholeOrBlocks

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
    original_peak_memory_bytes: int | None = None
    """Of the original at the same work; None where it does not fit the GPU, and on a CPU, as everything below."""
    kernel_matrices: int | None = None
    """Packed linears that kernels multiply by; None where there are none."""
    copy_bytes_per_second: float | None = None
    """The device's memory bandwidth, read and written, as a large copy reaches it."""
    decode_bandwidth_fraction: float | None = None
    """Stored bytes of those linears over the time their kernels take for one token, over that bandwidth; None where a
    cache could hold them."""


class ExpertCoverage(Spec):
    """Calibration tokens that the quantized experts of a mixture saw; `least_own` is the smallest weight that what an
    expert saw itself has in its Hessian, the rest being its layer's (0: it saw nothing)."""

    experts: int
    without_tokens: int
    fewest: int
    median: int
    least_own: float


class Standing(Spec):
    """How a build stood against the champion of its recipe when it was made; `champion`: it took, or kept, that place.

    `contrast` compares its KL with the champion's, or with `metric` nll the negative log-likelihood of the text, where
    the two were built from different originals. `why` says it in words.
    """

    champion: bool
    why: str
    against: Digest | None = None
    metric: Literal["kl", "nll"] = "kl"
    contrast: Contrast | None = None


class DomainRow(Spec):
    """The packed model, and the best uniform format, on the evaluation documents of one domain."""

    name: str
    documents: int
    tokens: int
    kl: Interval
    uniform: Interval | None = None
    ppl: Interval | None = None
    original_ppl: Interval | None = None
    top1: Interval | None = None


class PositionRow(Spec):
    """Mean KL of the tokens at positions `first` to `last` of their windows, counted from 0."""

    first: int
    last: int
    kl: Interval
    uniform: Interval | None = None


class Generation(Spec):
    """What the original and the packed model write after the same prompt."""

    prompt: str
    original: str
    mixed: str


class Fit(Spec):
    """KL that was predicted for the plan against KL that it has on the very text the scores are of, paired.

    `ratio` is measured over predicted. Additivity `holds` unless the interval of the ratio is wholly outside
    1 +- `tolerance`, the relative half-width of the measured KL's own interval.
    """

    predicted: Interval
    measured: Interval
    ratio: Interval
    tolerance: float
    holds: bool


class RoundRow(Spec):
    """One plan of a build of two rounds, measured on text held out for choosing."""

    round: int
    predicted_kl: float
    measured: Interval
    bytes: int
    kept: bool


class AlsoPacked(Spec):
    """The same selection in a further file format: the pack node, where it is, its size and what it measures."""

    node: str
    format: str
    packed: Packed
    bytes: Bytes
    bpw: BitsPerWeight
    measured: Measured
    gates: tuple[GateRow, ...]
    passed: bool


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
    recoded: Recoded | None = None
    allocation: tuple[AllocationRow, ...]
    certificate: dict[str, object]
    nodes: tuple[NodeRow, ...]
    gates: tuple[GateRow, ...]
    passed: bool
    packed: Packed
    speed: Speed | None
    """None where the packed model was `loaded` block by block, which cannot time it."""
    loaded: WholeOrBlocks = "whole"
    device: str
    notes: tuple[str, ...]
    """What a reader must know: capped lengths, raised damping, skipped text, repaired scores."""
    libraries: dict[str, str]
    mlflow_run_id: str | None
    prefect_flow_run_id: str | None
    standing: Standing | None = None
    """None in reports from before there were champions."""
    page: str | None = None
    """The self-contained HTML report on the machine that built."""
    asked: dict[str, object] | None = None
    """The recipe as it was written, short or explicit, without what are defaults."""
    domains: tuple[DomainRow, ...] = ()
    positions: tuple[PositionRow, ...] = ()
    generations: tuple[Generation, ...] = ()
    fit: Fit | None = None
    """None where scores are no KL, or know no documents."""
    rounds: tuple[RoundRow, ...] = ()
    """Both plans of a build of two rounds."""
    also: tuple[AlsoPacked, ...] = ()
    """Further file formats; `bytes`, `bpw` and everything else above are of the first."""
    experts: ExpertCoverage | None = None
    """None for dense models."""
