"""The Prefect flow `sweep`: under one parent a `compress` run per budget, then the plans they are compared with."""

from __future__ import annotations

import time
from typing import Any, Literal

from prefect import flow, runtime

from pipelines.build import from_traces
from pipelines.distribution import Distribution, RunnerKind
from pipelines.finish import GateFailure
from pipelines.flow import compress, compute
from pipelines.settings import settings
from pipelines.sweep import Asked, comparison, rungs
from schemas.sensitivity import MetricName


@flow(name="sweep", persist_result=False, flow_run_name="{recipe} sweep", validate_parameters=True)
def sweep(
    recipe: str,
    bits: list[float],
    over: Literal["linears", "file"] = "linears",
    set: dict[str, Any] | None = None,
    metrics: list[MetricName] | None = None,
    random: int = 0,
    store: str | None = None,
    tracking: str | None = None,
    device: str = "auto",
    runner: RunnerKind | None = None,
    scheduler: str | None = None,
    workers: int | None = None,
) -> list[dict[str, Any]]:
    """Build a recipe at every budget, and measure what it is compared with; the reports as JSON.

    Other arguments are those of `compress`. A build whose gates fail is part of the sweep.
    """
    asked = Asked(recipe, tuple((set or {}).items()), tuple(bits), over, tuple(metrics or ()), random)
    steps = rungs(asked, settings(store, tracking), device)
    reports = []
    for rung in steps:
        report = from_traces(rung.build, time.perf_counter())
        if report is None:
            try:
                document = compress(recipe, rung.overrides, store, tracking, device, runner, scheduler, workers)
            except GateFailure as failure:
                document = failure.report.model_dump(mode="json")
            reports.append(document)
        else:
            reports.append(report.model_dump(mode="json"))
    graph = comparison(asked, steps).build
    flow_run = str(runtime.flow_run.id or "") or None
    return compute(graph, device, Distribution(runner, scheduler, workers), flow_run, lambda built: reports)
