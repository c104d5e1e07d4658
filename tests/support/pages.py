"""Stores to look at: recorded builds of made-up reports, as many and as large as a test wants."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from reports import digest, example_report, interval, measured, node

from schemas.report import AllocationRow, Contrast, DomainRow, Generation, PositionRow, Report
from store.open import Store

FORMATS = ("int2-g64", "int3-g64", "int3-g128", "int4-g128", "int5-g128", "int8-g128")
MODULES = ("self_attn.qkv", "self_attn.o", "mlp.gate_up", "mlp.down")

GRAPH: dict[str, Any] = {
    "model": {"spec": {"step": "model", "source": "builtin:demo"}, "inputs": {}},
    "calibration_text": {"spec": {"step": "text", "source": "calibrate.jsonl"}, "inputs": {}},
    "tokens": {"spec": {"step": "tokenize", "length": 256}, "inputs": {"text": "calibration_text", "model": "model"}},
    "plan": {
        "spec": {"step": "allocate", "budget": {"bits_per_weight": 3.26}},
        "inputs": {"model": "model", "tokens": "tokens"},
    },
    "packed": {"spec": {"step": "pack"}, "inputs": {"model": "model", "plan": "plan"}},
}
"""A small recipe document; what runs is not what it says."""


def made_up(number: int, blocks: int = 6, **changes: Any) -> Report:
    """Build `number` of a sequence: other budgets, other plans, the older the worse."""
    rng = random.Random(number)
    bits = 2.3 + (number % 37) / 10
    kl = 0.4 * 4.0 ** -(bits - 2) * rng.uniform(0.9, 1.1)
    size = int(400_000 * bits) + 1_400_000
    rows = [
        AllocationRow(
            unit=f"layers.{block}.{module}",
            format=rng.choice(FORMATS),
            bytes=rng.randint(30_000, 150_000),
            score=kl / (4 * blocks) * rng.lognormvariate(0, 0.8),
        )
        for block in range(blocks)
        for module in MODULES
    ]
    units = {row.unit: {"agrees": rng.random(), "shares": {row.format: 1.0}} for row in rows}
    certificate = {
        **example_report().certificate,
        "stability": {"agreement": 0.85, "resamples": 100, "documents": 24, "units": units},
    }
    steps = {"model": "model", "calibration_text": "text", "tokens": "tokenize", "plan": "allocate", "packed": "pack"}
    sources = {"units_computed": 0, "units_cached": 0, "status": "cached"}
    rows_of = {
        name: node(
            name,
            step=step,
            outputs={name: digest(f"{name} {number}")},
            **(sources if step in ("model", "text") else {}),
        )
        for name, step in steps.items()
    }
    fields: dict[str, Any] = {
        "build_digest": digest(f"build {number}"),
        "recipe": ("demo", "llama-mixed", "nightly")[number % 3],
        "recipe_document": {"name": "demo", "nodes": GRAPH},
        "model": ("builtin:demo", "meta-llama/Llama-3.2-1B")[number % 2],
        "created": _day(number),
        "bytes": {"predicted": size, "actual": size, "header": 2400},
        "bpw": {"linear": bits, "total": bits + 1.3},
        "original": measured(10_500_000, 0.0, 38.9, 1.0),
        "mixed": measured(size, kl, 39.2, 0.93),
        "allocated": measured(size, kl * 1.1, 39.3, 0.92),
        "uniform": measured(size - 5000, kl * 1.5, 39.4, 0.91),
        "greedy": measured(size, kl * 1.12, 39.3, 0.92),
        "predicted_kl": kl * 1.05,
        "allocation": tuple(rows),
        "certificate": certificate,
        "contrasts": (
            Contrast(
                first="mixed",
                second="uniform",
                difference=interval(-kl / 2),
                ratio=interval(0.667, 0.02),
                verdict="better",
            ),
        ),
        "nodes": tuple(rows_of.values()),
        "passed": number % 7 != 0,
        "packed": {"path": f"/builds/demo-{number}", "digest": digest(f"packed {number}")},
    }
    return example_report(**(fields | changes))


def broken_down(report: Report) -> Report:
    """With what is measured by domain and by position, and samples."""
    names = ("reference", "tutorials", "release notes")
    domains = [
        DomainRow(
            name=n, documents=9 + i, tokens=9000, kl=interval(0.01 + 0.004 * i), uniform=interval(0.02 + 0.003 * i)
        )
        for i, n in enumerate(names)
    ]
    positions = [
        PositionRow(
            first=32 * k, last=32 * k + 31, kl=interval(0.02 / (1 + k / 3)), uniform=interval(0.03 / (1 + k / 3))
        )
        for k in range(8)
    ]
    samples = [Generation(prompt="The list of", original="all modules is sorted.", mixed="all modules is given below.")]
    return report.model_copy(
        update={"domains": tuple(domains), "positions": tuple(positions), "generations": tuple(samples)}
    )


DISTINCT = 40
"""Reports that are made; further builds are the same under another digest."""


def fill(folder: Path, builds: int, blocks: int = 6) -> Store:
    """A store with that many recorded builds; the newest has everything a report can have."""
    store = Store(folder)
    store.check_writable()
    reports = [made_up(number, blocks) for number in range(min(builds, DISTINCT))]
    documents = [report.model_dump(mode="json") for report in reports[:-1]]
    documents.append(broken_down(reports[-1]).model_dump(mode="json"))
    with store.batch():
        for number in range(builds):
            document = documents[-1 - (builds - 1 - number) % len(documents)]
            build = digest(f"build {number}")
            store.builds.save(build, {**document, "build_digest": build, "created": _day(number)})
    return store


def _day(number: int) -> str:
    return f"2026-{1 + number // 28 % 12:02}-{1 + number % 28:02}T{number % 24:02}:04:05+00:00"


def record_tiny(folder: Path, **changes: Any) -> Report:
    """A real build of the tiny model, without Prefect and MLflow, recorded in its store as a finished one is."""
    from builds import open_build, run_build

    from pipelines.assemble import Run, assemble

    build = open_build(folder, **changes)
    built = run_build(build)
    assert build.short is not None
    asked = build.short.model_dump(mode="json", exclude_defaults=True)
    report = assemble(build.runner, built, Run(4.2, str(folder / "packed"))).model_copy(update={"asked": asked})
    build.runner.store.builds.save(report.build_digest, report.model_dump(mode="json"))
    return report
