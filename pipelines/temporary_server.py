"""Prefect's temporary server ends with the process that started it, however that ends.

A process that is killed cannot stop its server, which would stay, with 230 MB, until the machine is restarted. So
beside each server a shell waits for the end of a pipe that this process alone holds open.
"""

from __future__ import annotations

import atexit
import subprocess
from typing import Any


class Apart(subprocess.Popen[bytes]):
    """A process that a terminal's Ctrl-C does not reach: without its server, ours would end a minute later."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "start_new_session": True})


WAIT = 'read -r done || kill "$1"'
"""A line means that all is well; the end of the pipe without one, that nobody is left to stop the process."""


def end_with_us() -> None:
    """From now on, for every temporary server that this process starts."""
    from prefect.server.api.server import SubprocessASGIServer

    start = SubprocessASGIServer._run_uvicorn_command
    if start.__module__ == __name__:
        return

    def guarded(server: SubprocessASGIServer) -> subprocess.Popen[bytes]:
        begin, subprocess.Popen = subprocess.Popen, Apart  # type: ignore[misc, assignment]
        try:
            process = start(server)
        finally:
            subprocess.Popen = begin  # type: ignore[misc]
        guard(process.pid)
        return process

    SubprocessASGIServer._run_uvicorn_command = guarded  # type: ignore[method-assign, assignment]


def guard(pid: int) -> None:
    """Have a process terminated if this one is killed; not if it ends by itself."""
    shell = subprocess.Popen(["sh", "-c", WAIT, "sh", str(pid)], stdin=subprocess.PIPE, start_new_session=True)
    atexit.register(shell.communicate, b"done\n")
