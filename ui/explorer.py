"""The budget explorer's allocator: a child process that answers lines of JSON, started when it is first asked.

`ui` imports neither pipelines nor steps; what it needs of them is this process (pipelines/explore.py).
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from contextlib import suppress
from typing import Any

from schemas.errors import InputError

PATIENCE = 120.0
"""Seconds that an answer may take; opening a large table takes some."""


class Explorer:
    """One child, one question at a time; a child that died or hangs is replaced at the next question."""

    def __init__(self, store: str) -> None:
        self._command = [sys.executable, "-m", "pipelines.explore", "--store", store]
        self._child: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._asked = 0

    def ask(self, operation: str, **fields: Any) -> dict[str, Any]:
        """The answer. InputError as the child raised it, or when there is none."""
        with self._lock:
            self._asked += 1
            line = self._exchange(json.dumps({"id": self._asked, "op": operation, **fields}))
        reply = json.loads(line)
        if "error" in reply:
            raise InputError(**reply["error"])
        ok: dict[str, Any] = reply["ok"]
        return ok

    def _exchange(self, line: str) -> str:
        child = self._running()
        assert child.stdin is not None and child.stdout is not None
        watchdog = threading.Timer(PATIENCE, child.kill)
        watchdog.start()
        try:
            child.stdin.write(line + "\n")
            child.stdin.flush()
            answer = child.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            watchdog.cancel()
        if not answer:
            self.stop()
            raise InputError("the allocator gave no answer", where=" ".join(self._command[1:]), fix="try again")
        return answer

    def _running(self) -> subprocess.Popen[str]:
        if self._child is not None and self._child.poll() is not None:
            self.stop()
        if self._child is None:
            self._child = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
            )
        return self._child

    def stop(self) -> None:
        """End the child, if there is one."""
        child, self._child = self._child, None
        if child is not None:
            with suppress(BrokenPipeError, OSError):
                child.communicate(timeout=2)
            child.kill()
            child.wait()
