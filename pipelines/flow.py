"""The Prefect flow `compress`: one task per batch of a node's items, only digests travel through Prefect.

Prefect's own result cache is off; a node whose traces all hit is a task in state Cached.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prefect import flow, runtime, task
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed

from pipelines.build import Build, prepare
from pipelines.dead_runs import bury
from pipelines.distribution import Cluster, Distribution, RunnerKind, cluster
from pipelines.drive import Built, Execute, Outputs, Result, drive_and_use
from pipelines.finish import check_gates, finish
from pipelines.preflight import check
from pipelines.progress import Watch, watch
from pipelines.settings import settings
from pipelines.tasks import Job, run_items, share
from schemas.base import canonical_json
from schemas.report import NodeRow, Report
from store.lineage import check_tracking


def job_of(build: Build, device: str) -> Job:
    """What a worker needs to know of a build. Relative paths that exist here become absolute; URLs and ids stay."""
    document = build.recipe.model_dump(mode="json")
    for node in document["nodes"].values():
        source = node["spec"].get("source")
        if source is not None and Path(source).exists():
            node["spec"]["source"] = str(Path(source).absolute())
    return Job(uuid.uuid4().hex, canonical_json(document), build.where.store, device)


def handing_out(build: Build, job: Job, place: Cluster, watched: Watch) -> Execute:
    """An `execute` that makes one Prefect task of each batch; batches of a block-scope node run in order."""
    runner = build.runner

    def execute(node: str, outputs: Outputs, labels: Sequence[str]) -> int:
        batches = place.batches(labels)
        step = runner.by_id[node].step
        in_order = step is not None and step.scope == "block"
        watched.begin(node, len(labels))
        computed = 0
        for group in [[each] for each in batches] if in_order else [batches]:
            common = {"job": job, "node": node, "outputs": outputs, "forced": sorted(runner.forced)}
            tasks = [
                (run_items.with_options(task_run_name=_name(node, batch)), {**common, "labels": batch})
                for batch in group
            ]
            for batch, (count, whole_again) in zip(group, place.run(tasks), strict=True):
                computed += count
                runner.forced.difference_update(whole_again)
                watched.batch_done(len(batch))
        watched.node_done()
        return computed

    return execute


def _name(node: str, batch: Sequence[str]) -> str:
    return f"{node} {batch[0]}" + (f" .. {batch[-1]}" if len(batch) > 1 else "")


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
    runner: RunnerKind | None = None,
    scheduler: str | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Build a recipe (a path or a shipped name), fields overridden by `set` (dotted path -> value).

    With `runner` dask or ray tasks run on the workers of `scheduler`, or on `workers` (2) processes of this machine.
    Returns the report as JSON. A build whose gates fail is finished, recorded, and raised as GateFailure.
    """
    build = prepare(recipe, tuple((set or {}).items()), settings(store, tracking), device)
    return check_gates(carry_out(build, device, Distribution(runner, scheduler, workers))).model_dump(mode="json")


def carry_out(build: Build, device: str, distribution: Distribution) -> Report:
    """Do what a recipe asks for, within a flow: check, compute what is not cached, finish."""
    started = time.perf_counter()
    distribution.check(PREFECT_API_URL.value())
    check_tracking(build.where.tracking)
    check(build, here=distribution.scheduler is None)
    flow_run = str(runtime.flow_run.id or "") or None

    def report(built: Built) -> Report:
        return finish(build, built, flow_run, time.perf_counter() - started)

    return compute(build, device, distribution, flow_run, report)


def compute(
    build: Build, device: str, distribution: Distribution, flow_run: str | None, use: Callable[[Built], Result]
) -> Result:
    """Compute within a flow what is not cached of a recipe, then `use` it; under way until that is done."""
    job = job_of(build, device)

    def on_cached(row: NodeRow) -> None:
        cached_node.with_options(task_run_name=row.id)(row.id, row.key, row.units_cached)
        watched.node_done()

    def used(built: Built) -> Result:
        watched.begin("report", 1)
        return use(built)

    bury(build.runner.store)
    with watch(build.runner.store, build.recipe.name, len(build.runner.bound), flow_run) as watched:
        share(job, build.runner, watched)
        with cluster(distribution) as place:
            return drive_and_use(build.runner, handing_out(build, job, place, watched), used, on_cached)
