"""What a report becomes in MLflow: metric names, flat parameters, the allocation as CSV. Plain data, no MLflow."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from typing import Any

from schemas.base import canonical_json
from schemas.report import Report

METRICS = {
    "bpw": "true bits per weight over the quantized linears",
    "bpw_total": "true bits per weight of the whole weights file over all weights of the model",
    "bytes": "size of the packed weights file",
    "kl": "mean KL(original || packed) per token, nats, measured on the packed file",
    "kl_uniform": "the same for the best uniform format of no more bytes",
    "kl_greedy": "the same for the greedy plan of no more bytes",
    "kl_allocated": "the same for the chosen plan before any training",
    "ppl": "perplexity of the packed file",
    "ppl_original": "perplexity of the original on the same text",
    "top1": "share of tokens whose likeliest next token is the original's",
    "predicted_kl": "what the allocator expected `kl_allocated` to be",
    "seconds": "wall time of the build, or of the node",
    "units_computed": "pieces of work done in this run, over all nodes, or of the node",
    "units_cached": "pieces of work found in the store",
}
"""Every metric name that is logged of a build; compare views and alerts may rely on them."""

DOMAIN_METRICS = {
    "kl_domain.NAME": "KL of the packed file on the text of a domain",
    "kl_uniform_domain.NAME": "the same for the best uniform format of no more bytes",
    "ppl_domain.NAME": "perplexity of the packed file there",
    "ppl_original_domain.NAME": "perplexity of the original there",
    "top1_domain.NAME": "share of tokens there whose likeliest next token is the original's",
}
"""Of a build, for each domain of `text.domains`."""

SWEEP_METRICS = {
    "builds": "builds of the sweep that were made, or found in the store",
    "builds_failed": "those of them whose gates did not pass",
    "kl_over_uniform": "geometric mean over the budgets of KL(allocated) over KL(best uniform format of no more bytes)",
    "trend_slope": "slope of measured against predicted KL over the budgets, in logarithms; 1 is ideal",
}

TAGS = {
    "bitsmith.parent": "`true` on the run of a build; nodes below it do not have it",
    "bitsmith.build": "digest of the build: of its recipe and of all outputs",
    "bitsmith.recipe": "digest of the explicit recipe",
    "bitsmith.packed": "digest of the packed folder's listing",
    "bitsmith.passed": "whether all gates passed, `true` or `false`",
    "bitsmith.standing": "how the build stood against the champion when it was made, in words",
    "bitsmith.device": "what it was verified on",
    "bitsmith.done": "`true` once everything of the build is logged",
    "bitsmith.node": "on a nested run: the node's name",
    "bitsmith.step": "on a nested run: the node's step",
    "bitsmith.status": "on a nested run: `computed`, `cached` or `partial`",
    "bitsmith.sweep": "`true` on the run above the builds of a sweep",
    "bitsmith.digest": "on a dataset input: the whole digest",
    "bitsmith.path": "on a model version: the packed folder",
    "prefect.flow_run_id": "the Prefect flow run that made it",
    "mlflow.parentRunId": "the build of a node, the sweep of a build",
}
"""Every tag that we set."""

_PARAM_CHARACTERS, _KEY_CHARACTERS = 6000, 250
"""MLflow's limits."""


def flatten(recipe: Any, path: str = "") -> dict[str, str]:
    """A nested document as `a.b.0.c` -> text of at most 6000 characters; lists of plain values stay one entry."""
    nested = isinstance(recipe, Mapping) or (
        isinstance(recipe, list) and any(isinstance(v, dict | list) for v in recipe)
    )
    if nested and recipe:
        pairs = recipe.items() if isinstance(recipe, Mapping) else enumerate(recipe)
        result: dict[str, str] = {}
        for key, value in pairs:
            result |= flatten(value, f"{path}.{key}" if path else str(key))
        return result
    text = recipe if isinstance(recipe, str) else canonical_json(recipe)
    if len(text) > _PARAM_CHARACTERS:
        note = f"... ({len(text)} characters, whole in recipe.yaml)"
        text = text[: _PARAM_CHARACTERS - len(note)] + note
    return {re.sub(r"[^\w\-. /]", "_", path, flags=re.ASCII)[:_KEY_CHARACTERS]: text}


def metrics_of(report: Report) -> dict[str, float]:
    """The values of METRICS and DOMAIN_METRICS that this build has."""
    return {
        "bpw": report.bpw.linear,
        "bpw_total": report.bpw.total,
        "bytes": float(report.bytes.actual),
        "kl": report.mixed.kl.value,
        **({"kl_uniform": report.uniform.kl.value} if report.uniform else {}),
        "kl_greedy": report.greedy.kl.value,
        "kl_allocated": report.allocated.kl.value,
        "ppl": report.mixed.ppl.value,
        "ppl_original": report.original.ppl.value,
        "top1": report.mixed.top1.value,
        "predicted_kl": report.predicted_kl,
        "seconds": report.seconds,
        "units_computed": float(sum(node.units_computed for node in report.nodes)),
        "units_cached": float(sum(node.units_cached for node in report.nodes)),
        **domain_metrics_of(report),
    }


def domain_metrics_of(report: Report) -> dict[str, float]:
    """The values of DOMAIN_METRICS that this build has, under each domain's own name."""
    return {
        f"{name}_domain.{row.name}": interval.value
        for row in report.domains
        for name, interval in (
            ("kl", row.kl),
            ("kl_uniform", row.uniform),
            ("ppl", row.ppl),
            ("ppl_original", row.original_ppl),
            ("top1", row.top1),
        )
        if interval is not None
    }


def allocation_csv(report: Report) -> str:
    """The allocation table as CSV text."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["unit", "format", "bytes", "score"])
    writer.writerows([row.unit, row.format, row.bytes, row.score] for row in report.allocation)
    return out.getvalue()
