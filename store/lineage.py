"""Builds in MLflow: one parent run per build, one nested run per node, one model version per build that passed.

The only place that imports MLflow, inside functions. Its global state (current URI, active run) is left alone.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from schemas.errors import InputError
from schemas.report import NodeRow, Report
from store.lineage_facts import allocation_csv, flatten, metrics_of
from store.tracking import ARTIFACTS, database_folder, resolve_tracking
from store.tracking import check_tracking as check_tracking

ALIAS = "candidate"
"""`latest` is reserved by MLflow; a person moves `champion`."""

PARENT, BUILD, DONE, NODE = "bitsmith.parent", "bitsmith.build", "bitsmith.done", "bitsmith.node"

_PARAMS_PER_BATCH = 100
_DATASET_DIGEST = 32
"""MLflow holds 36 characters of a dataset's digest; the whole one is in the tag `bitsmith.digest`."""

_ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class Input(NamedTuple):
    """Something a build read: shown as a dataset on the run. `context` is its role, for example `calibration`."""

    name: str
    digest: str
    source: str
    context: str


def log_build(
    uri: str,
    experiment: str,
    report: Report,
    recipe_yaml: str,
    inputs: Sequence[Input] = (),
    plots: Mapping[str, Path] | None = None,
    *,
    register_as: str | None = None,
) -> str:
    """Log a finished build; the id of its parent run.

    `recipe_yaml` is the resolved recipe: whole as an artifact, flattened as params. A build is logged once per
    experiment: a finished run with its `build_digest` is returned as it is, an unfinished one is completed. When
    `report.passed` and `register_as` names a registered model, a version with the alias `candidate` is made.
    InputError when MLflow cannot be reached or refuses; the build itself is in the store and can be logged again.
    """
    check_tracking(uri)
    with _mlflow(resolve_tracking(uri)) as client:
        where = _experiment(client, resolve_tracking(uri), experiment)
        run = _parent_run(client, where, report)
        run_id: str = run.info.run_id
        if DONE not in run.data.tags:
            _log_parent(client, run, report, recipe_yaml, inputs)
            _log_artifacts(client, run_id, report, recipe_yaml, plots or {})
            _log_nodes(client, where, run_id, report)
            if report.passed and register_as:
                _register(client, where, run_id, report, register_as)
            client.set_tag(run_id, DONE, "true")
            client.set_terminated(run_id, end_time=_moment(report))
    return run_id


@contextmanager
def _mlflow(uri: str) -> Iterator[Any]:
    """A quiet client of its own; whatever MLflow throws becomes an InputError."""
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update({name: value for name, value in _ENVIRONMENT.items() if before[name] is None})
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield MlflowClient(tracking_uri=uri, registry_uri=uri)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise InputError(
            "the build could not be logged to MLflow",
            where=uri,
            got=f"{type(error).__name__}: {error}",
            fix="the build is complete in the store; run the same recipe again to log it",
        ) from error
    finally:
        logger.setLevel(level)
        for name in (name for name, value in before.items() if value is None):
            os.environ.pop(name, None)


def _experiment(client: Any, uri: str, name: str) -> str:
    """The experiment's id. Artifacts live beside a local file (MLflow's own default is the current folder)."""
    found = client.get_experiment_by_name(name)
    if found is None:
        folder = database_folder(uri)
        return str(client.create_experiment(name, artifact_location=folder and (folder / ARTIFACTS).as_uri()))
    return str(found.experiment_id)


def _parent_run(client: Any, experiment: str, report: Report) -> Any:
    """The build's run: the one that is there, or a new one."""
    wanted = f"tags.`{BUILD}` = '{report.build_digest}' and tags.`{PARENT}` = 'true'"
    for run in client.search_runs(
        [experiment], filter_string=wanted, order_by=["attributes.start_time ASC"], max_results=1
    ):
        return run
    tags = {
        PARENT: "true",
        BUILD: report.build_digest,
        "bitsmith.recipe": report.recipe_digest,
        "bitsmith.packed": report.packed.digest,
        "bitsmith.passed": str(report.passed).lower(),
        "bitsmith.device": report.device,
        "prefect.flow_run_id": report.prefect_flow_run_id or "none",
    }
    start = _moment(report) - round(1000 * report.seconds)
    return client.create_run(experiment, start_time=start, tags=tags, run_name=report.recipe)


def _log_parent(client: Any, run: Any, report: Report, recipe_yaml: str, inputs: Sequence[Input]) -> None:
    """Params that are not there yet (they cannot be changed), metrics, and inputs with their digests."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param

    run_id, moment = run.info.run_id, _moment(report)
    flat = flatten(yaml.safe_load(recipe_yaml))
    params = [Param(key, value) for key, value in flat.items() if key not in run.data.params]
    for start in range(0, len(params), _PARAMS_PER_BATCH):
        client.log_batch(run_id, params=params[start : start + _PARAMS_PER_BATCH])
    client.log_batch(run_id, metrics=[Metric(name, value, moment, 0) for name, value in metrics_of(report).items()])
    datasets = []
    for item in inputs:
        tags = [InputTag("mlflow.data.context", item.context), InputTag("bitsmith.digest", item.digest)]
        data = Dataset(item.name, item.digest[:_DATASET_DIGEST], "bitsmith", json.dumps({"uri": item.source}))
        datasets.append(DatasetInput(data, tags))
    if datasets:
        client.log_inputs(run_id, datasets)


def _log_artifacts(client: Any, run_id: str, report: Report, recipe_yaml: str, plots: Mapping[str, Path]) -> None:
    full = report.model_copy(update={"mlflow_run_id": run_id})
    client.log_text(run_id, full.model_dump_json(indent=1), "report.json")
    client.log_text(run_id, allocation_csv(report), "allocation.csv")
    client.log_text(run_id, recipe_yaml, "recipe.yaml")
    for path in plots.values():
        client.log_artifact(run_id, str(path), "plots")


def _log_nodes(client: Any, experiment: str, parent: str, report: Report) -> None:
    """One nested run per node, in the recipe's order, three calls each."""
    wanted = f"tags.`mlflow.parentRunId` = '{parent}'"
    there = {run.data.tags.get(NODE): run for run in client.search_runs([experiment], filter_string=wanted)}
    for node in report.nodes:
        run = there.get(node.id) or _node_run(client, experiment, parent, report, node)
        if run.info.status != "FINISHED":
            _log_node(client, run, report, node)


def _node_run(client: Any, experiment: str, parent: str, report: Report, node: NodeRow) -> Any:
    tags = {"mlflow.parentRunId": parent, NODE: node.id, "bitsmith.step": node.step, "bitsmith.status": node.status}
    start = _moment(report) - round(1000 * node.seconds)
    return client.create_run(experiment, start_time=start, tags=tags, run_name=node.id)


def _log_node(client: Any, run: Any, report: Report, node: NodeRow) -> None:
    from mlflow.entities import Metric, Param

    moment = _moment(report)
    params = {"key": node.key, **{f"output.{port}": digest for port, digest in node.outputs.items()}}
    values = {"seconds": node.seconds, "units_computed": node.units_computed, "units_cached": node.units_cached}
    client.log_batch(
        run.info.run_id,
        metrics=[Metric(name, float(value), moment, 0) for name, value in values.items()],
        params=[Param(name, value) for name, value in params.items() if name not in run.data.params],
    )
    client.set_terminated(run.info.run_id, end_time=moment)


def _register(client: Any, experiment: str, run_id: str, report: Report, name: str) -> None:
    """A model version that points at the packed folder, which stays where it is; once per build."""
    tags = {BUILD: report.build_digest, "bitsmith.packed": report.packed.digest, "bitsmith.path": report.packed.path}
    if not client.search_registered_models(filter_string=f"name = '{name}'"):
        client.create_registered_model(name)
    for version in client.search_model_versions(f"name = '{name}' and tags.`{BUILD}` = '{report.build_digest}'"):
        client.set_registered_model_alias(name, ALIAS, version.version)
        return
    model = client.create_logged_model(
        experiment,
        name=name,
        source_run_id=run_id,
        tags={**tags, "mlflow.model.isExternal": "true"},
        model_type="packed",
    )
    client.finalize_logged_model(model.model_id, "READY")
    # The location, not `models:/<id>`: MLflow looks that one up in its global tracking URI.
    version = client.create_model_version(name, model.artifact_location, run_id, tags=tags, model_id=model.model_id)
    client.set_registered_model_alias(name, ALIAS, version.version)


def _moment(report: Report) -> int:
    """When the build was made, in milliseconds, as MLflow counts."""
    return round(1000 * datetime.fromisoformat(report.created).timestamp())
