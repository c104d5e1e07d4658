"""The real services in a folder of their own: up, a run through the worker, lineage over HTTP, down, nothing left."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from reports import example_report

from pipelines import processes, servers, services
from pipelines.processes import Handle, lives, reserve_port
from pipelines.services import ServiceState, down, running, show_status, up
from schemas.errors import InputError

pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("own services")]

FLOW = """
import os, time
from pathlib import Path
from prefect import flow

@flow
def trivial(seconds: float = 0) -> None:
    Path(os.environ["BITSMITH_HOME"], "ran").write_text(os.getcwd())
    time.sleep(seconds)
"""
DEPLOYMENTS = """
name: test
pull:
  - prefect.deployments.steps.set_working_directory: {directory: "{{ $PWD }}"}
deployments:
  - {name: test, entrypoint: "trivial.py:trivial", work_pool: {name: bitsmith}}
  - name: nightly
    entrypoint: trivial.py:trivial
    work_pool: {name: bitsmith}
    schedules: [{cron: "0 2 * * *", timezone: UTC, slug: nightly, active: true}]
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with one trivial deployment."""
    folder = tmp_path_factory.mktemp("root")
    (folder / "trivial.py").write_text(FLOW)
    (folder / "prefect.yaml").write_text(DEPLOYMENTS)
    return folder


@pytest.fixture(scope="module")
def state(root: Path) -> Iterator[ServiceState]:
    """The services, started once for this module (half a minute)."""
    folder = root / "state"
    yield up(root, folder, say=lambda _: None)
    down(folder)


def _wait(ready: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.2)


def _marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(processes.MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def test_all_three_answer(state: ServiceState, capsys: pytest.CaptureFixture[str]) -> None:
    assert show_status(state.folder) == 0
    assert capsys.readouterr().out.count("answers") == 3
    assert running(state.folder) == state
    assert state.tracking_uri and servers.answers(state.tracking_uri + "/version")
    (cure,) = servers.call(state.prefect_api_url or "", "/automations/filter", {})
    assert cure["trigger"]["posture"] == "Proactive"
    assert cure["trigger"]["within"] == 90
    assert cure["actions"][0]["state"] == "CRASHED"


def test_a_second_up_starts_nothing(state: ServiceState, root: Path) -> None:
    (root / "prefect.yaml").rename(root / "aside.yaml")  # deploying again is not what is tested
    try:
        assert up(root, state.folder, say=lambda _: None) == state
    finally:
        (root / "aside.yaml").rename(root / "prefect.yaml")


def test_lineage_over_http(state: ServiceState) -> None:
    from mlflow import MlflowClient

    from store.lineage import log_build

    run_id = log_build(state.tracking_uri or "", "builds", example_report(), "name: demo\n", register_as="tiny")
    client = MlflowClient(tracking_uri=state.tracking_uri, registry_uri=state.tracking_uri)
    assert client.get_run(run_id).info.status == "FINISHED"
    assert client.get_model_version_by_alias("tiny", "candidate").run_id == run_id
    assert [path.name for path in state.folder.glob(f"mlflow-artifacts/*/{run_id}/artifacts/report.json")]


def test_a_deployment_runs_and_down_leaves_nothing(state: ServiceState, root: Path) -> None:
    """The run still goes on when `down` is called: the server hears of its end, and its process goes too."""
    api = state.prefect_api_url or ""
    (deployment,) = servers.call(api, "/deployments/filter", {"deployments": {"name": {"any_": ["test"]}}})
    run = servers.call(api, f"/deployments/{deployment['id']}/create_flow_run", {"parameters": {"seconds": 600}})
    _wait((state.folder / "ran").exists)
    assert (state.folder / "ran").read_text() == str(root)
    (read,) = servers.call(api, "/flow_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
    assert read["state_name"] == "Running"
    assert down(state.folder) == ["worker", "page", "mlflow", "prefect"]
    assert _marked(state.mark) == []
    assert running(state.folder) is None
    assert down(state.folder) == []
    with closing(sqlite3.connect(state.folder / "prefect" / "prefect.db")) as database:
        rows = database.execute("select auto_scheduled, state_name from flow_run").fetchall()
    assert [state for automatic, state in rows if not automatic] == ["Crashed"]
    assert "Scheduled" in [state for automatic, state in rows if automatic], "nightlies wait for their time"


def test_a_reused_pid_is_never_touched(tmp_path: Path) -> None:
    """services.json names a pid that now belongs to a program that has nothing to do with us."""
    innocent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        service = {"name": "mlflow", "pid": innocent.pid, "started": 12345.0, "url": "http://127.0.0.1:1", "log": "x"}
        text = json.dumps({"mark": "none", "services": {"mlflow": service}})
        (tmp_path / "services.json").write_text(text)
        assert running(tmp_path) is None
        said: list[str] = []
        assert down(tmp_path, say=said.append) == []
        assert said == ["mlflow was gone already; its log is x"]
        assert innocent.poll() is None
        assert not (tmp_path / "services.json").exists()
    finally:
        innocent.kill()
        innocent.wait()


def test_broken_or_missing_state_means_nothing_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert running(tmp_path) is None
    for text in ("", "{", "[]", '{"mark": "x", "services": {"mlflow": {}}}'):
        (tmp_path / "services.json").write_text(text)
        assert running(tmp_path) is None
    assert show_status(tmp_path) == 1
    assert "bitsmith up" in capsys.readouterr().out


def test_a_server_that_cannot_start_is_told_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails = [sys.executable, "-c", "print('the cupboard is bare'); raise SystemExit(3)"]
    waits = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(servers, "prefect_command", lambda port: fails)
    monkeypatch.setattr(servers, "mlflow_command", lambda port, folder: waits)
    with pytest.raises(InputError, match=r"(?s)ended before it answered.*cupboard is bare"):
        up(tmp_path, tmp_path / "state", say=lambda _: None)
    assert running(tmp_path / "state") is None
    left = json.loads((tmp_path / "state" / "services.json").read_text())
    assert left["services"] == {}
    assert _marked(left["mark"]) == []


def test_one_at_a_time(tmp_path: Path) -> None:
    with services._alone(tmp_path), pytest.raises(InputError, match="at work"):
        up(tmp_path, tmp_path)


def test_a_taken_port_gives_way_to_the_next() -> None:
    port, holder = reserve_port(23450)
    with holder:
        other, second = reserve_port(port)
        second.close()
        assert other > port, "two calls at the same moment get two ports"


def test_lives_knows_a_process_by_pid_and_start() -> None:
    this = psutil.Process()
    assert lives(Handle(this.pid, this.create_time()))
    assert not lives(Handle(this.pid, this.create_time() - 60))


def test_asking_what_runs_is_cheap() -> None:
    code = (
        "import sys; from pipelines.services import running; running(); "
        "sys.exit(bool({'prefect', 'mlflow', 'torch', 'rich'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, env=dict(os.environ)).returncode == 0
