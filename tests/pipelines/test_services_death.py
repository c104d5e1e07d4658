"""Slow: what happens to a run whose process and worker are killed, and to services of which one has died."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pipelines import servers
from pipelines.services import down, running, up

FLOW = """
import os, time
from pathlib import Path
from prefect import flow

@flow
def trivial(seconds: float = 600) -> None:
    Path(os.environ["BITSMITH_HOME"], "ran").write_text(str(os.getpid()))
    time.sleep(seconds)
"""
DEPLOYMENTS = """
name: test
pull:
  - prefect.deployments.steps.set_working_directory: {directory: "{{ $PWD }}"}
deployments:
  - name: test
    entrypoint: trivial.py:trivial
    work_pool: {name: bitsmith}
    concurrency_limit: {limit: 1, collision_strategy: ENQUEUE}
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_run_becomes_crashed_and_up_mends_the_rest(tmp_path: Path) -> None:
    """Three missed heartbeats and the list tells the truth; a dead worker is started again, the servers are kept, and
    the run that waited for the slot of the dead one has its turn."""
    (tmp_path / "trivial.py").write_text(FLOW)
    (tmp_path / "prefect.yaml").write_text(DEPLOYMENTS)
    folder = tmp_path / "state"
    state = up(tmp_path, folder)
    try:
        api = state.prefect_api_url or ""
        (deployment,) = servers.call(api, "/deployments/filter", {})
        run = servers.call(api, f"/deployments/{deployment['id']}/create_flow_run", {})
        _until((folder / "ran").exists, 120)
        worker = state.services["worker"].pid
        victims = [worker, *(child.pid for child in psutil.Process(worker).children(recursive=True))]
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        # The next night waits behind the dead one, which holds the deployment's only slot.
        create = f"/deployments/{deployment['id']}/create_flow_run"
        following = servers.call(api, create, {"parameters": {"seconds": 0}})
        _until(lambda: _state(api, run["id"]) == "Crashed", 240)

        alive = running(folder)
        assert alive is not None and set(alive.services) == {"prefect", "mlflow", "page"}
        said: list[str] = []
        mended = up(tmp_path, folder, say=said.append)
        assert said[0].startswith("worker had died")
        assert mended.services["prefect"] == state.services["prefect"]
        assert mended.services["worker"].pid != worker
        _until(lambda: _state(api, following["id"]) == "Completed", 240)
    finally:
        assert down(folder)


def _state(api: str, run: str) -> str:
    (read,) = servers.call(api, "/flow_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
    return str(read["state_name"])


def _until(ready: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(1)
