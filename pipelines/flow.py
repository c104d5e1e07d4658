"""The Prefect flow `compress`: one task per batch of a node's items, only digests travel through Prefect.

Prefect's own result cache is off; a node whose traces all hit is a task in state Cached.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from prefect import flow, runtime, task
from prefect.client.schemas.objects import State
from prefect.states import Completed

from pipelines.build import Build, prepare
from pipelines.drive import Outputs, drive
from pipelines.finish import GateFailure, finish
from pipelines.preflight import check
from pipelines.settings import settings
from schemas.report import NodeRow
from store.lineage import check_tracking

_BUILDS: dict[tuple[Any, ...], Build] = {}
"""Builds opened by this process, so that every task of a run shares one."""


def _opened(
    recipe: str, assignments: Sequence[tuple[str, Any]], store: str | None, tracking: str | None, device: str
) -> Build:
    key = (recipe, repr(assignments), store, tracking, device)
    if key not in _BUILDS:
        _BUILDS.clear()
        _BUILDS[key] = prepare(recipe, assignments, settings(store, tracking), device)
    return _BUILDS[key]


@task(persist_result=False)
def run_items(build: tuple[Any, ...], node: str, outputs: Outputs, labels: Sequence[str]) -> int:
    """Compute some items of a node; returns how many this process computed itself."""
    from pipelines.progress import reporter

    return _opened(*build).runner.execute(node, outputs, labels, reporter())


@task(persist_result=False)
def cached_node(node: str, key: str, units: int) -> State[None]:
    """Tell the Prefect UI that a node had nothing to do."""
    return Completed(name="Cached", message=f"all {units} traces of {node} hit, key {key[:12]}")


@flow(name="compress", persist_result=False, flow_run_name="{recipe}", validate_parameters=True)
def compress(
    recipe: str,
    set: dict[str, Any] | None = None,
    store: str | None = None,
    tracking: str | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Build a recipe (a path or a shipped name), fields overridden by `set` (dotted path -> value).

    Returns the report as JSON. A build whose gates fail is finished, recorded, and raised as GateFailure.
    """
    arguments = (recipe, tuple((set or {}).items()), store, tracking, device)
    started = time.perf_counter()
    build = _opened(*arguments)
    check_tracking(build.where.tracking)
    check(build)

    def execute(node: str, outputs: Outputs, labels: Sequence[str]) -> int:
        name = f"{node} {labels[0]}" + (f" .. {labels[-1]}" if len(labels) > 1 else "")
        return run_items.with_options(task_run_name=name)(arguments, node, outputs, labels)

    def on_cached(row: NodeRow) -> None:
        cached_node.with_options(task_run_name=row.id)(row.id, row.key, row.units_cached)

    with build.runner.store.running(build.recipe.name):
        built = drive(build.runner, execute, on_cached)
        report = finish(build, built, str(runtime.flow_run.id or "") or None, time.perf_counter() - started)
    if not report.passed:
        raise GateFailure(report)
    return report.model_dump(mode="json")
