"""Nights against the real Prefect and MLflow: nothing changed, one layer changed, a worse build, a failed one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from builds import write_recipe
from nights import nudge
from reports import example_report

from pipelines import servers
from pipelines.difference import headline
from pipelines.finish import GateFailure, check_gates
from pipelines.services import ServiceState
from schemas.report import GateRow, Report
from store.open import Store

pytestmark = [pytest.mark.timeout(900), pytest.mark.xdist_group("services")]
ROOT = Path(__file__).resolve().parents[2]
NIGHTS: list[dict[str, Any]] = [
    {},
    {},
    {"nudge": "model.layers.1.mlp.down_proj.weight"},
    {"set": {"formats": ["int2-g32"]}},
    {"set": {"budget.bits_per_weight": 0.5}},
]
FIRST, SAME, CHANGED, WORSE, FAILED = range(5)


@dataclass(frozen=True)
class Nights:
    """What the nights said, in order, and what was heard at the webhook."""

    told: list[dict[str, Any]]
    heard: list[str]
    folder: Path
    recipe: Path

    @property
    def store(self) -> Store:
        return Store(self.folder / "store")

    def report(self, number: int) -> Report:
        """The report of a night that built; builds are listed newest first."""
        built = [FIRST, CHANGED, WORSE]
        return Report.model_validate(self.store.builds.list()[::-1][built.index(number)].report)


@pytest.fixture(scope="module")
def alarm() -> Iterator[tuple[str, list[str]]]:
    """A webhook on loopback: its URL, and what it was sent."""
    heard: list[str] = []

    class Hears(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hears) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/alarm", heard
        http.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def nights(services: ServiceState, alarm: tuple[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Nights:
    folder = tmp_path_factory.mktemp("nights")
    recipe = write_recipe(folder, name="nights", formats=["int2-g32", "int4-g64"], distill=None)
    plan = {
        "recipe": str(recipe),
        "model": str(folder / "model"),
        "store": str(folder / "store"),
        "tracking": f"sqlite:///{folder / 'mlflow.db'}",  # over HTTP a build takes ten seconds more
        "alarm": alarm[0],
        "nights": NIGHTS,
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    own = {"BITSMITH_HOME": str(folder / "state"), "PREFECT_API_URL": str(services.prefect_api_url), "PYTHONPATH": path}
    command = [sys.executable, str(ROOT / "tests/support/nights.py"), str(folder / "plan.json"), str(folder / "out")]
    environment = {**os.environ, **own, "NO_COLOR": "1", "DO_NOT_TRACK": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    told = [json.loads(line) for line in (folder / "out").read_text().splitlines()]
    return Nights(told, alarm[1], folder, recipe)


def until(ready: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.2)
    return found


def test_each_night_says_how_it_went(nights: Nights) -> None:
    assert [(night["type"], night["name"]) for night in nights.told] == [
        ("COMPLETED", "Champion"),
        ("COMPLETED", "Unchanged"),
        ("COMPLETED", "Champion"),
        ("COMPLETED", "Kept"),
        ("FAILED", "Failed"),
    ]
    assert "InputError" in nights.told[FAILED]["message"]


def test_a_night_without_a_change_computes_and_records_nothing(nights: Nights) -> None:
    first = nights.report(FIRST)
    assert nights.told[SAME]["message"].startswith(f"nothing changed since build {first.build_digest[:12]}")
    assert len(nights.store.builds.list()) == 3


def test_one_changed_layer_computes_what_depends_on_it_and_nothing_else(nights: Nights) -> None:
    """The last down projection feeds no Hessian: its own two formats, and none of the other 14 items."""
    computed = {row.id: row.units_computed for row in nights.report(CHANGED).nodes if row.units_computed}
    assert computed["candidates"] == 2
    assert "calibration" not in computed and "verdict" in computed


def test_builds_of_different_models_are_compared_by_likelihood(nights: Nights) -> None:
    standing = nights.report(CHANGED).standing
    assert standing is not None and standing.contrast is not None
    assert (standing.metric, standing.against) == ("nll", nights.report(FIRST).build_digest)
    assert standing.contrast.difference.low <= 0


def test_a_worse_build_never_replaces_the_champion(nights: Nights) -> None:
    from mlflow import MlflowClient

    champion, worse = nights.report(CHANGED), nights.report(WORSE)
    assert worse.passed and worse.standing is not None and not worse.standing.champion
    assert worse.standing.contrast is not None and worse.standing.contrast.difference.low > 0
    assert nights.store.builds.champions() == {"nights": champion.build_digest}
    uri = f"sqlite:///{nights.folder / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    alias = {name: client.get_model_version_by_alias("nights", name).run_id for name in ("champion", "candidate")}
    assert alias == {"champion": champion.mlflow_run_id, "candidate": worse.mlflow_run_id}


def test_the_difference_is_an_artifact(nights: Nights, services: ServiceState) -> None:
    api = services.prefect_api_url or ""
    wanted = {"artifacts": {"key": {"any_": ["nightly-nights"]}}, "sort": "CREATED_DESC"}
    found = servers.call(api, "/artifacts/filter", wanted)
    worse, changed, first = [each["data"] for each in found]
    assert "gates passed; champion, the first build of this recipe that passed" in first
    assert "the content of `model`" in changed and "| candidates | 2 | 14 |" in changed
    report, before = nights.report(WORSE), nights.report(CHANGED)
    moved = sum(a.format != b.format for a, b in zip(report.allocation, before.allocation, strict=True))
    assert f"{moved} of 8 units have another format." in worse and "not the champion, worse than" in worse
    assert f"| KL | {report.mixed.kl.value:.5f} | {before.mixed.kl.value:.5f} |" in worse


def test_a_failure_raises_an_event_that_the_example_automation_acts_on(nights: Nights, services: ServiceState) -> None:
    until(lambda: nights.heard)
    assert nights.heard[0].startswith("bitsmith.nightly.failed of bitsmith.recipe.nights: InputError: ")
    api = services.prefect_api_url or ""
    wanted = {"filter": {"event": {"prefix": ["bitsmith.nightly."]}, "resource": {"id": ["bitsmith.recipe.nights"]}}}
    found = until(lambda: (e := servers.call(api, "/events/filter", wanted)["events"]) and len(e) == 5 and e)
    names = [event["event"].removeprefix("bitsmith.nightly.") for event in sorted(found, key=lambda e: e["occurred"])]
    assert names == ["champion", "unchanged", "champion", "kept", "failed"]
    assert all(event["related"][0]["prefect.resource.id"].startswith("prefect.flow-run.") for event in found)


def test_the_scheduled_deployment_is_a_no_op_within_seconds(nights: Nights, services: ServiceState) -> None:
    """Through the worker, as at night; only what the flow itself takes is ours."""
    api = services.prefect_api_url or ""
    (deployment,) = servers.call(api, "/deployments/filter", {"deployments": {"name": {"any_": ["nightly"]}}})
    assert [each["schedule"]["cron"] for each in deployment["schedules"]] == ["0 2 * * *"]
    parameters = {"recipe": str(nights.recipe), "store": str(nights.folder / "store"), **NIGHTS[WORSE]}
    run = servers.call(api, f"/deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})
    wanted = {"flow_runs": {"id": {"any_": [run["id"]]}}}
    ended = until(lambda: (r := servers.call(api, "/flow_runs/filter", wanted)[0])["end_time"] and r, 120)
    assert ended["state_name"] == "Unchanged"
    assert ended["state"]["message"].startswith(f"nothing changed since build {nights.report(WORSE).build_digest[:12]}")
    assert ended["total_run_time"] < 10


def test_gates_that_failed_fail_again_although_nothing_changed() -> None:
    report = example_report(passed=False, gates=(GateRow(name="max_kl", limit=0.01, value=0.02, passed=False),))
    with pytest.raises(GateFailure, match="max_kl"):
        check_gates(report)
    assert headline(report, None) == "gates failed (max_kl)"


def test_a_nudge_changes_one_weight(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").glob("*.safetensors")}
    nudge(tmp_path / "model", "model.layers.1.mlp.down_proj.weight")
    after = {path.name: path.read_bytes() for path in (tmp_path / "model").glob("*.safetensors")}
    assert sum(before[name] != after[name] for name in before) == 1
