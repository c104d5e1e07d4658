"""Builds in MLflow: one run per build, one nested run per node, one model version per build that passed.

MLflow is imported in store/mlflow_client.py only. store/MLFLOW.md has every name that is used here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from schemas.report import NodeRow, Report
from store.lineage_facts import allocation_csv, flatten, metrics_of
from store.mlflow_client import experiment_id, mlflow_client
from store.tracking import check_tracking as check_tracking
from store.tracking import has_records, resolve_tracking

CANDIDATE, CHAMPION = "candidate", "champion"
"""Aliases of model versions: the newest build that passed, and the one to use. (`latest` is reserved by MLflow.)"""

PARENT, BUILD, DONE, NODE = "bitsmith.parent", "bitsmith.build", "bitsmith.done", "bitsmith.node"
PAGE = "report.html"

_PARAMS_PER_BATCH = 100
_DATASET_DIGEST = 32
"""MLflow holds 36 characters of a dataset's digest; the whole one is in the tag `bitsmith.digest`."""

Draw = Callable[[Report], Path | None]
"""Makes a report into one HTML file, or says None when it cannot."""


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
    page: Draw = lambda report: None,
) -> str:
    """Log a finished build; the id of its run.

    `recipe_yaml` is the resolved recipe: whole as an artifact, flattened as params. `page` is handed the report with
    its run id and draws what becomes report.html. A build is logged once per experiment: a finished run with its
    `build_digest` is returned as it is, an unfinished one is completed. When `report.passed` and `register_as` names a
    registered model, a version with the alias `candidate` is made, and `champion` if that is the build's standing.
    InputError when MLflow cannot be reached or refuses; the build itself is in the store and can be logged again.
    """
    check_tracking(uri)
    with mlflow_client(resolve_tracking(uri)) as client:
        where = experiment_id(client, resolve_tracking(uri), experiment)
        run = _parent_run(client, where, report)
        run_id: str = run.info.run_id
        if DONE not in run.data.tags:
            _log_parent(client, run, report, recipe_yaml, inputs)
            _log_artifacts(client, report.model_copy(update={"mlflow_run_id": run_id}), recipe_yaml, plots or {}, page)
            _log_nodes(client, where, run_id, report)
            if report.passed and register_as:
                _register(client, where, run_id, report, register_as)
            client.set_tag(run_id, DONE, "true")
            client.set_terminated(run_id, end_time=_moment(report))
        if report.standing is not None and report.standing.champion and register_as:
            _move_alias(client, register_as, report.build_digest)
    return run_id


def move_champion(uri: str, model: str, build_digest: str | None) -> bool:
    """Make a build's version the champion of a registered model, or with None leave it without; False if it has none.

    For decisions that a person makes after the build was logged.
    """
    if not has_records(uri):
        return False
    check_tracking(uri)
    with mlflow_client(resolve_tracking(uri)) as client:
        if not client.search_registered_models(filter_string=f"name = '{model}'"):
            return False
        if build_digest is not None:
            return _move_alias(client, model, build_digest)
        client.delete_registered_model_alias(model, CHAMPION)
        return True


def _move_alias(client: Any, model: str, build_digest: str) -> bool:
    version = _version_of(client, model, build_digest)
    if version is not None:
        client.set_registered_model_alias(model, CHAMPION, version.version)
    return version is not None


def _version_of(client: Any, model: str, build_digest: str) -> Any | None:
    wanted = f"name = '{model}' and tags.`{BUILD}` = '{build_digest}'"
    return next(iter(client.search_model_versions(wanted)), None)


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
        "bitsmith.standing": report.standing.why if report.standing else "unknown",
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


def _log_artifacts(client: Any, report: Report, recipe_yaml: str, plots: Mapping[str, Path], page: Draw) -> None:
    run_id = report.mlflow_run_id
    client.log_text(run_id, report.model_dump_json(indent=1), "report.json")
    client.log_text(run_id, allocation_csv(report), "allocation.csv")
    client.log_text(run_id, recipe_yaml, "recipe.yaml")
    for path in plots.values():
        client.log_artifact(run_id, str(path), "plots")
    drawn = page(report)
    if drawn is not None:
        client.log_text(run_id, drawn.read_text("utf-8"), PAGE)


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
    version = _version_of(client, name, report.build_digest)
    if version is None:
        model = client.create_logged_model(
            experiment,
            name=name,
            source_run_id=run_id,
            tags={**tags, "mlflow.model.isExternal": "true"},
            model_type="packed",
        )
        client.finalize_logged_model(model.model_id, "READY")
        # The location, not `models:/<id>`: MLflow looks that one up in its global tracking URI.
        where = model.artifact_location
        version = client.create_model_version(name, where, run_id, tags=tags, model_id=model.model_id)
    client.set_registered_model_alias(name, CANDIDATE, version.version)


def _moment(report: Report) -> int:
    """When the build was made, in milliseconds, as MLflow counts."""
    return round(1000 * datetime.fromisoformat(report.created).timestamp())
