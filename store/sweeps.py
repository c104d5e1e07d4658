"""A sweep in MLflow: one run above the runs of its builds, so that the page shows and compares them as one."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from store.lineage_facts import SWEEP_METRICS, flatten
from store.mlflow_client import experiment_id, mlflow_client
from store.tracking import check_tracking, resolve_tracking

SWEEP, UNDER = "bitsmith.sweep", "mlflow.parentRunId"


def open_sweep(uri: str, experiment: str, name: str, params: Mapping[str, str] | None = None) -> str:
    """Open the run above the builds of a sweep, in the experiment of their recipe; its id.

    `params` say what is varied, for example {"budget.bits_per_weight": "2.5, 3.0, 3.5"}. InputError when MLflow cannot
    be reached. The run shows as running until `close_sweep`.
    """
    check_tracking(uri)
    resolved = resolve_tracking(uri)
    with mlflow_client(resolved) as client:
        from mlflow.entities import Param

        where = experiment_id(client, resolved, experiment)
        run_id = str(client.create_run(where, tags={SWEEP: "true"}, run_name=name).info.run_id)
        named = flatten(dict(params)) if params else {}
        client.log_batch(run_id, params=[Param(key, value) for key, value in named.items()])
        return run_id


def add_to_sweep(uri: str, sweep: str, runs: Iterable[str]) -> None:
    """Put logged builds (Report.mlflow_run_id) under a sweep. MLflow knows one parent: the later sweep has a build."""
    with mlflow_client(resolve_tracking(uri)) as client:
        for run in runs:
            client.set_tag(run, UNDER, sweep)


def close_sweep(
    uri: str,
    sweep: str,
    metrics: Mapping[str, float] | None = None,
    *,
    files: Iterable[Path] = (),
    failed: bool = False,
) -> None:
    """End a sweep's run; `metrics` are some of SWEEP_METRICS, `files` are kept with it."""
    found = dict(metrics or {})
    unknown = found.keys() - SWEEP_METRICS.keys()
    assert not unknown, f"store/lineage_facts.py does not name {sorted(unknown)}"
    with mlflow_client(resolve_tracking(uri)) as client:
        from mlflow.entities import Metric

        now = round(1000 * time.time())
        client.log_batch(sweep, metrics=[Metric(name, value, now, 0) for name, value in found.items()])
        for path in files:
            client.log_artifact(sweep, str(path))
        client.set_terminated(sweep, status="FAILED" if failed else "FINISHED")
