"""What the services are: their commands, their environment, how they answer, what is installed in them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.processes import environment_with
from schemas.errors import InputError
from store.tracking import ARTIFACTS

POOL = "bitsmith"
HEARTBEAT_SECONDS, MISSED_AFTER_SECONDS = 30, 90
"""A run whose process died under a dead worker would stay Running for good; three missed heartbeats make it Crashed."""

_ATTEMPTS = 6
_RUN_ENDS = ("Completed", "Failed", "Cancelled", "Crashed", "Paused", "Suspended", "AwaitingRetry")
CURE: dict[str, Any] = {
    "name": "bitsmith-dead-runs",
    "description": "A run that stops sending heartbeats has lost its process and its worker.",
    "enabled": True,
    "trigger": {
        "type": "event",
        "posture": "Proactive",
        "match": {"prefect.resource.id": "prefect.flow-run.*"},
        "for_each": ["prefect.resource.id"],
        "after": ["prefect.flow-run.heartbeat"],
        "expect": ["prefect.flow-run.heartbeat", *(f"prefect.flow-run.{name}" for name in _RUN_ENDS)],
        "threshold": 1,
        "within": MISSED_AFTER_SECONDS,
    },
    "actions": [
        {
            "type": "change-flow-run-state",
            "state": "CRASHED",
            "name": "Crashed",
            "message": f"no heartbeat for {MISSED_AFTER_SECONDS} s: the process and its worker are gone",
        }
    ],
}
"""The automation that says so (prefect.events.schemas.automations.EventTrigger, ChangeFlowRunState)."""


def prefect_settings(folder: Path, api: str | None) -> dict[str, str]:
    """Environment of anything that talks to our Prefect: a home of its own, no analytics, heartbeats, plain text."""
    settings = {
        "PREFECT_HOME": str(folder.absolute() / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
        "DO_NOT_TRACK": "1",
        "NO_COLOR": "1",
    }
    return {**settings, "PREFECT_API_URL": api} if api else settings


def environment(folder: Path, root: Path, mark: str, api: str) -> dict[str, str]:
    """The whole environment of our services; Prefect settings of the user's own are left out."""
    changes = {
        **prefect_settings(folder, api),
        "PREFECT_UI_STATIC_DIRECTORY": str(folder.absolute() / "prefect" / "ui"),
        "PREFECT_WORKER_QUERY_SECONDS": "3",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "BITSMITH_HOME": str(folder.absolute()),
        "PYTHONPATH": str(root.absolute()),
        "PWD": str(root.absolute()),
    }
    return environment_with(mark, changes, without="PREFECT_")


def local_tracking(folder: Path) -> str:
    """The tracking URI while no MLflow server runs: the very file that ours serves."""
    return f"sqlite:///{folder.absolute() / 'mlflow.db'}"


def prefect_command(port: int) -> list[str]:
    """Prefect's API and page."""
    return [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]


def worker_command(name: str) -> list[str]:
    """A worker that runs each flow run in a process of its own."""
    return [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", name]


def mlflow_command(port: int, folder: Path) -> list[str]:
    """MLflow over the same file, and the same artifact folder, as lineage that is logged while no server runs."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    artifacts = (folder.absolute() / ARTIFACTS).as_uri()
    return [*command, "--backend-store-uri", local_tracking(folder), "--default-artifact-root", artifacts]


def page_command(port: int, folder: Path, prefect: str, mlflow: str) -> list[str]:
    """The page over the state folder's own store, with links to the other two."""
    command = [sys.executable, "-m", "ui", "--port", str(port), "--state", str(folder.absolute())]
    return [*command, "--store", str(folder.absolute() / "store"), "--prefect-url", prefect, "--mlflow-url", mlflow]


def answers(url: str, timeout: float = 2) -> bool:
    """Whether a GET is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def worker_is_online(api: str, name: str) -> bool:
    """Whether the server has heard of a worker of that name."""
    workers = call(api, f"/work_pools/{POOL}/workers/filter", {})
    return any(worker["name"] == name and worker["status"] == "ONLINE" for worker in workers)


def install(api: str) -> None:
    """The work pool and the automation, each once. The worker fills in the pool's job template."""
    if not any(pool["name"] == POOL for pool in call(api, "/work_pools/filter", {})):
        call(api, "/work_pools/", {"name": POOL, "type": "process"})
    there = call(api, "/automations/filter", {"automations": {"name": {"any_": [CURE["name"]]}}})
    for automation in there:
        call(api, f"/automations/{automation['id']}", CURE, method="PUT")
    if not there:
        call(api, "/automations/", CURE)


def deploy(root: Path, settings: Mapping[str, str], log: Path) -> None:
    """`prefect deploy --all` for root/prefect.yaml; InputError with what it said when it fails."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(command, cwd=root, env=dict(settings), capture_output=True, text=True, check=False)
    log.write_text(done.stdout + done.stderr)
    if done.returncode:
        raise InputError(
            "the deployments were refused",
            where=str(root / "prefect.yaml"),
            got="\n" + tail(log),
            fix="mend prefect.yaml or the flow it names, then `bitsmith up` again",
        )


def call(api: str, path: str, body: Mapping[str, Any], method: str = "POST") -> Any:
    """One request to Prefect's API with a JSON body; its JSON answer.

    503 is what the server says while its SQLite file is locked by another request: such a one is sent again.
    """
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(api + path, json.dumps(body).encode(), headers, method=method)
    for attempt in reversed(range(_ATTEMPTS)):
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                text = reply.read()
            return json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            with error:
                said = error.read().decode(errors="replace")[:500]
            if error.code != 503 or not attempt:
                raise InputError("Prefect refused a request", where=api + path, got=f"{error.code} {said}") from error
            time.sleep(1)
        except OSError as error:
            raise InputError("Prefect does not answer", where=api + path, got=error) from error
    raise AssertionError("the last attempt returns or raises")


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log, indented."""
    text = log.read_text(errors="replace").replace("\0", "").strip() if log.exists() else ""
    return "\n".join(f"    {line.rstrip()[:300]}" for line in text.splitlines()[-lines:])
