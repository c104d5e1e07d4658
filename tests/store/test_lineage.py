"""Builds in a real MLflow (SQLite, no server): what a run shows, and that logging twice is logging once."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from reports import digest, example_report, node

from schemas.errors import InputError
from store import lineage
from store.lineage import Input, log_build
from store.lineage_facts import METRICS, flatten, metrics_of

RECIPE = yaml.safe_dump(
    {"name": "demo", "budget": {"bits_per_weight": 3.0}, "formats": ["int3-g64"], "prose": "x" * 7000}
)
TEXT = Input("evaluation text", digest("text"), "pipelines/demo/evaluate.jsonl", "evaluation")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the module's one database is (its first use writes the schema, which takes seconds)."""
    return tmp_path_factory.mktemp("tracking")


@pytest.fixture(scope="module")
def uri(folder: Path) -> str:
    return f"sqlite:///{folder}/mlflow.db"


@pytest.fixture(scope="module")
def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def test_a_build_is_all_there(uri: str, folder: Path, client: Any, capfd: pytest.CaptureFixture[str]) -> None:
    environment = dict(os.environ)
    plot = folder / "bits.svg"
    plot.write_text("<svg/>")
    report = example_report()
    run_id = log_build(uri, "builds", report, RECIPE, [TEXT], {"bits": plot}, register_as="tiny-3bit")
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.info.end_time - run.info.start_time == 61_500
    assert run.data.metrics == pytest.approx(metrics_of(report))
    assert set(metrics_of(report)) == set(METRICS)
    assert run.data.params["budget.bits_per_weight"] == "3.0"
    assert len(run.data.params["prose"]) == 6000
    assert run.data.tags["bitsmith.packed"] == report.packed.digest
    assert run.data.tags["prefect.flow_run_id"] == "0f0e"
    (seen,) = run.inputs.dataset_inputs
    assert {tag.key: tag.value for tag in seen.tags} == {
        "mlflow.data.context": "evaluation",
        "bitsmith.digest": TEXT.digest,
    }
    artifacts = folder / "mlflow-artifacts" / run_id / "artifacts"
    assert json.loads((artifacts / "report.json").read_text())["mlflow_run_id"] == run_id
    assert (artifacts / "allocation.csv").read_text().count("\n") == 13
    assert (artifacts / "plots" / "bits.svg").is_file()
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
    assert dict(os.environ) == environment


def test_nodes_are_nested(uri: str, client: Any) -> None:
    run_id = log_build(uri, "builds", example_report(), RECIPE, [TEXT])
    (experiment,) = {client.get_run(run_id).info.experiment_id}
    nested = client.search_runs([experiment], filter_string=f"tags.`mlflow.parentRunId` = '{run_id}'")
    assert {run.info.run_name: run.data.tags["bitsmith.status"] for run in nested} == {
        "quantize": "computed",
        "allocate": "cached",
    }
    assert all(run.info.status == "FINISHED" for run in nested)
    assert {run.data.metrics["units_computed"] for run in nested} == {0.0, 12.0}
    assert nested[0].data.params.keys() == {"key", f"output.{nested[0].info.run_name}"}


def test_the_version_is_the_candidate(uri: str, client: Any) -> None:
    version = client.get_model_version_by_alias("tiny-3bit", "candidate")
    assert version.tags["bitsmith.path"] == "/builds/demo"
    assert version.tags["bitsmith.packed"] == digest("packed")
    failed = example_report(build_digest=digest("failed"), passed=False)
    log_build(uri, "builds", failed, RECIPE, register_as="tiny-3bit")
    assert client.get_model_version_by_alias("tiny-3bit", "candidate").version == version.version
    better = example_report(build_digest=digest("better"))
    log_build(uri, "builds", better, RECIPE, register_as="tiny-3bit")
    assert client.get_model_version_by_alias("tiny-3bit", "candidate").version == version.version + 1


def test_logging_again_after_a_crash_completes_the_run(uri: str, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    report = example_report(build_digest=digest("crashed"), nodes=tuple(node(f"n{k}") for k in range(3)))
    calls: list[str] = []

    def fall_over(*args: Any) -> None:
        calls.append(args[-1].id)
        if len(calls) == 2:
            raise ConnectionError("the server went away")
        original(*args)

    original = lineage._log_node
    with monkeypatch.context() as patch:
        patch.setattr(lineage, "_log_node", fall_over)
        with pytest.raises(InputError, match="complete in the store"):
            log_build(uri, "crashes", report, RECIPE, [TEXT], register_as="again")
    run_id = log_build(uri, "crashes", report, RECIPE, [TEXT], register_as="again")
    assert log_build(uri, "crashes", report, RECIPE, [TEXT], register_as="again") == run_id
    experiment = client.get_run(run_id).info.experiment_id
    runs = client.search_runs([experiment])
    assert len(runs) == 4
    assert {run.info.status for run in runs} == {"FINISHED"}
    parents = client.search_runs([experiment], filter_string="tags.`bitsmith.parent` = 'true'")
    assert [run.info.run_id for run in parents] == [run_id]
    assert len(client.search_model_versions("name = 'again'")) == 1


def test_a_refusal_is_an_input_error(uri: str) -> None:
    with pytest.raises(InputError, match="could not be logged"):
        log_build(uri, "builds", example_report(build_digest=digest("slash")), RECIPE, register_as="a/b:c")


def test_mlflow_is_left_as_it_was(uri: str) -> None:
    import mlflow

    assert mlflow.active_run() is None
    assert mlflow.get_tracking_uri() != uri
    assert logging.getLogger("mlflow").level != logging.ERROR


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, "c": None}, "d": [1, 2], "e": [{"x": True}], "f": {}, "g~h": "text"}) == {
        "a.b": "1",
        "a.c": "null",
        "d": "[1,2]",
        "e.0.x": "true",
        "f": "{}",
        "g_h": "text",
    }


def test_importing_lineage_imports_no_mlflow() -> None:
    code = "import sys, store.lineage, store.tracking; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
