"""A build killed with -9 in its own process: the next build of the store tells Prefect, and forgets it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import servers
from pipelines.services import ServiceState
from store.open import Store

pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("services")]
ROOT = Path(__file__).resolve().parents[2]

DIES = """
import os, signal, sys
from prefect import flow, runtime
from pipelines.progress import watch
from store.open import Store

@flow
def build():
    with watch(Store(sys.argv[1]), "demo", 22, str(runtime.flow_run.id)) as watched:
        watched.begin("candidates", 264)
        os.kill(os.getpid(), signal.SIGKILL)

build()
"""
BURIES = """
import sys
from prefect import flow
from pipelines.dead_runs import bury
from store.open import Store

@flow
def next_build():
    print([(running.recipe, running.total) for running in bury(Store(sys.argv[1]))])

next_build()
"""


def test_the_next_build_tells_prefect_that_a_killed_one_is_no_more(services: ServiceState, tmp_path: Path) -> None:
    store, api = tmp_path / "store", str(services.prefect_api_url)
    own = {"PREFECT_API_URL": api, "PYTHONPATH": str(ROOT), "PREFECT_HOME": str(tmp_path / "prefect")}

    def run(code: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, str(store)]
        return subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True, check=False)

    assert run(DIES).returncode == -signal.SIGKILL
    (dead,) = Store(store).under_way.list()
    assert not dead.alive and dead.flow_run is not None
    wanted = {"flow_runs": {"id": {"any_": [dead.flow_run]}}}
    assert servers.call(api, "/flow_runs/filter", wanted)[0]["state_name"] == "Running"
    done = run(BURIES)
    assert done.returncode == 0 and "[('demo', 264)]" in done.stdout, done.stderr[-3000:]
    (read,) = servers.call(api, "/flow_runs/filter", wanted)
    assert read["state_name"] == "Crashed" and "was killed at node candidates" in read["state"]["message"]
    assert Store(store).under_way.list() == ()
