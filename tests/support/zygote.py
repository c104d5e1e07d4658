"""Processes that begin where imports end: forked from one that has imported what a build needs, and started nothing.

A start of Python with torch, transformers, Prefect and MLflow takes several times as long as a tiny build. Run as a
program, this file imports all that, then forks a child that is `crashes.watched` for every request it reads.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PRELOADED = (
    "pipelines.cli",
    "pipelines.flow",
    "pipelines.finish",
    "mlflow.tracking",
    "matplotlib.backends.backend_svg",
    "compressed_tensors.compressors",
    "transformers.models.llama.modeling_llama",
    "crashes",
)
POLL = 0.01


class Zygote:
    """Started when it is first asked for a child; ends when this process does."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment, self._process = dict(environment), None

    def _ask(self, **request: Any) -> Any:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, __file__],
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                bufsize=1,
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        return json.loads(self._process.stdout.readline())

    def start(self, words: Sequence[str], environment: Mapping[str, str], out: Path, err: Path) -> Child:
        """A child that runs `crashes.watched(words)`."""
        return Child(self, self._ask(words=words, environment=dict(environment), out=str(out), err=str(err)))

    def code(self, pid: int) -> int | None:
        """A child's exit code, negative for a signal; None while it runs."""
        answer: int | None = self._ask(pid=pid)
        return answer

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            assert self._process.stdin is not None and self._process.stdout is not None
            self._process.stdin.close()
            self._process.wait(60)
            self._process.stdout.close()


class Child:
    """What is needed of subprocess.Popen."""

    def __init__(self, zygote: Zygote, pid: int) -> None:
        self._zygote, self.pid, self._code = zygote, pid, None

    def poll(self) -> int | None:
        """The exit code, or None."""
        if self._code is None:
            self._code = self._zygote.code(self.pid)
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; subprocess.TimeoutExpired if it does not come in time."""
        deadline = time.monotonic() + (timeout if timeout is not None else float("inf"))
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("a forked build", timeout or 0.0)
            time.sleep(POLL)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """kill -9."""
        self.send_signal(signal.SIGKILL)


def main() -> int:
    """Answer requests until there are no more; in a child: run what was asked for."""
    for name in PRELOADED:
        importlib.import_module(name)
    from steps.table import STEPS

    for step in STEPS:
        importlib.import_module(step.module)
    assert threading.active_count() == 1, threading.enumerate()
    while line := sys.stdin.readline():
        request = json.loads(line)
        answer = _ended(request["pid"]) if "pid" in request else os.fork()
        if answer == 0 and "pid" not in request:
            return _run(request)
        print(json.dumps(answer), flush=True)
    return 0


def _ended(pid: int) -> int | None:
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def _run(request: Mapping[str, Any]) -> int:
    os.environ.update(request["environment"])
    for number, path in ((0, os.devnull), (1, request["out"]), (2, request["err"])):
        file = os.open(path, os.O_RDWR if number else os.O_RDONLY)
        os.dup2(file, number)
        os.close(file)
    try:
        return int(sys.modules["crashes"].watched(request["words"]))
    except Exception:
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    sys.exit(main())
