"""Sweeps in a real MLflow: builds are put under one run, whichever had logged them; the names that the doc promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from reports import digest, example_report

from schemas.errors import InputError
from store import mlflow_doc
from store.lineage import log_build
from store.lineage_facts import TAGS
from store.sweeps import add_to_sweep, close_sweep, open_sweep


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('tracking')}/mlflow.db"


@pytest.fixture(scope="module")
def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def test_builds_are_put_under_a_sweep(uri: str, client: Any) -> None:
    """One build was logged long before the sweep and found in the store by it."""
    reports = [example_report(build_digest=digest(str(k))) for k in range(2)]
    runs = [log_build(uri, "demo", reports[0], "name: demo\n")]
    sweep = open_sweep(uri, "demo", "two budgets", {"budget.bits_per_weight": "2.5, 3.0", "odd~name": "x"})
    assert client.get_run(sweep).info.status == "RUNNING"
    runs.append(log_build(uri, "demo", reports[1], "name: demo\n"))
    add_to_sweep(uri, sweep, runs)
    close_sweep(uri, sweep, {"builds": 2.0, "builds_failed": 0.0})
    parent = client.get_run(sweep)
    assert (parent.info.status, parent.info.run_name) == ("FINISHED", "two budgets")
    assert parent.data.params == {"budget.bits_per_weight": "2.5, 3.0", "odd_name": "x"}
    assert parent.data.metrics == {"builds": 2.0, "builds_failed": 0.0}
    wanted = f"tags.`mlflow.parentRunId` = '{sweep}' and tags.`bitsmith.parent` = 'true'"
    assert {run.info.run_id for run in client.search_runs([parent.info.experiment_id], wanted)} == set(runs)
    tags = {tag for run in client.search_runs([parent.info.experiment_id]) for tag in run.data.tags}
    assert {tag for tag in tags if tag.startswith(("bitsmith.", "prefect."))} <= TAGS.keys()


def test_a_failed_sweep_says_so(uri: str, client: Any) -> None:
    sweep = open_sweep(uri, "demo", "ends early")
    close_sweep(uri, sweep, failed=True)
    assert client.get_run(sweep).info.status == "FAILED"


def test_no_metric_without_a_promise(uri: str) -> None:
    with pytest.raises(AssertionError, match="does not name"):
        close_sweep(uri, "any", {"speed_of_light": 3e8})


def test_a_server_that_is_not_there(uri: str) -> None:
    with pytest.raises(InputError, match="cannot be reached"):
        open_sweep("http://127.0.0.1:9", "demo", "never")


def test_the_doc_has_the_names_that_the_code_has() -> None:
    text = mlflow_doc.DOC.read_text("utf-8")
    assert mlflow_doc.with_tables(text) == text, "run `python -m store.mlflow_doc`"


def test_every_tag_that_is_written_is_in_the_table() -> None:
    import re

    store = Path(mlflow_doc.__file__).parent
    text = "\n".join((store / name).read_text() for name in ("lineage.py", "sweeps.py"))
    assert set(re.findall(r'"((?:bitsmith|prefect)\.[a-z_]+)"', text)) <= TAGS.keys()
