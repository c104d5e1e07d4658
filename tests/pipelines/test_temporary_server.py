"""What a build starts for itself is gone when the build is, also after kill -9."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BEGIN = {
    "a process": "p = subprocess.Popen(['sleep', '600']); guard(p.pid)",
    "prefect's server": (
        "from prefect.server.api.server import SubprocessASGIServer;"
        "end_with_us(); end_with_us(); p = SubprocessASGIServer(port=8999)._run_uvicorn_command()"
    ),
}


def started(what: str, then: str, home: Path) -> tuple[subprocess.Popen[str], int]:
    """A process that starts another and does something then; the other's number."""
    script = "import subprocess, time; from pipelines.temporary_server import end_with_us, guard;"
    environment = {**os.environ, "PREFECT_HOME": str(home), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", f"{script} {BEGIN[what]}; print(p.pid, flush=True); {then}"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def runs(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
@pytest.mark.parametrize("what", BEGIN)
def test_it_ends_when_the_process_that_started_it_is_killed(what: str, tmp_path: Path) -> None:
    process, other = started(what, "time.sleep(600)", tmp_path)
    with process:
        assert runs(other)
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while runs(other) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not runs(other)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
def test_a_process_that_ends_by_itself_stops_what_it_wants_to(tmp_path: Path) -> None:
    process, other = started("a process", "pass", tmp_path)
    with process:
        process.wait()
    try:
        time.sleep(0.3)
        assert runs(other)
    finally:
        os.kill(other, signal.SIGKILL)
