"""`bitsmith sweep` as a user types it, over real servers: interrupted, gone on with, found cached."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from builds import write_recipe

from pipelines.services import ServiceState
from schemas.report import Report
from store.open import Store

pytestmark = [pytest.mark.timeout(900), pytest.mark.xdist_group("services"), pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]


def command(state: ServiceState, recipe: Path, out: Path) -> list[str]:
    bitsmith = Path(sys.executable).with_name("bitsmith")
    words = ["sweep", str(recipe), "--bits", "2.8,4.2", "--metrics", "fisher", "--random", "1", "--json", str(out)]
    return [str(bitsmith), *words, "--tracking", str(state.tracking_uri)]


def test_a_sweep_is_interrupted_finished_and_found_cached(services: ServiceState, tmp_path: Path) -> None:
    recipe, out = write_recipe(tmp_path, distill=None, name="swept"), tmp_path / "reports.json"
    env = {**os.environ, "BITSMITH_HOME": str(services.folder), "NO_COLOR": "1"}
    words = command(services, recipe, out)
    store = Store(str(services.folder / "store"))

    first = subprocess.Popen(words, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while not any(b.report["recipe"] == "swept" for b in store.builds.list()) and time.monotonic() < deadline:
        time.sleep(0.5)
    first.send_signal(signal.SIGINT)
    _, told = first.communicate(timeout=120)
    assert first.returncode == 130 and not out.exists(), told.decode()[-3000:]
    assert any(b.report["recipe"] == "swept" for b in store.builds.list())

    done = subprocess.run(words, env=env, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    reports = [Report.model_validate(each) for each in json.loads(out.read_text())]
    assert [round(r.bpw.linear, 1) for r in reports] == [2.8, 4.2]
    assert sum(n.units_computed for n in reports[0].nodes) == 0
    assert all(n.units_computed == 0 for n in reports[1].nodes if n.id in ("candidates", "scores", "statistics"))

    digest = store.builds.pins()["sweep-swept"]
    found = store.artifacts.load(digest)
    assert set(found.files) == {"front.svg", "front.png"}
    assert found.meta["builds"] == [r.build_digest for r in reports]

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=services.tracking_uri)
    runs = [client.get_run(str(r.mlflow_run_id)) for r in reports]
    (parent,) = {run.data.tags["mlflow.parentRunId"] for run in runs}
    above = client.get_run(parent)
    assert above.data.metrics["builds"] == 2 and above.data.metrics["builds_failed"] == 0
    assert {each.path for each in client.list_artifacts(parent)} == {"front.svg", "front.png", "sweep.json"}

    again = subprocess.run(words, env=env, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert "every node is cached" in again.stderr
    assert again.stdout.split("artifact")[0] == done.stdout.split("artifact")[0]
