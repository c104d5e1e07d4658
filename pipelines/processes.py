"""Background processes that outlive the command that started them: start, recognise, stop.

A process is known by its pid and its start time, so a pid that the system has given to another program is never
mistaken for ours. Everything a service starts inherits the mark in its environment, which is how none is left behind.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.errors import InputError

MARK = "BITSMITH_SERVICES"
"""Environment variable that carries the mark."""

_SAME_START = 5.0
"""Seconds that two readings of one process's start time may differ by (the clock is adjusted now and then)."""

_children: list[subprocess.Popen[bytes]] = []
"""Kept so that Python neither warns about children that outlive us nor leaves them as zombies."""


@dataclass(frozen=True)
class Handle:
    """A process, by pid and start time (seconds since 1970)."""

    pid: int
    started: float


def start(command: Sequence[str], *, folder: Path, environment: Mapping[str, str], log: Path) -> Handle:
    """Start a command in a session of its own, so that it outlives this process; output goes to `log`."""
    with log.open("ab") as out:
        child = subprocess.Popen(
            command,
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _children.append(child)
    import psutil

    return Handle(child.pid, psutil.Process(child.pid).create_time())


def lives(handle: Handle) -> bool:
    """Whether that very process still runs."""
    return _find(handle) is not None


def stop(handles: Iterable[Handle], patience: float) -> None:
    """SIGTERM, up to `patience` seconds, then SIGKILL: first what is below the processes, then they themselves.

    In this order a flow run can still tell the server that it ends: it becomes Crashed.
    """
    processes = [process for process in map(_find, handles) if process is not None]
    _end([below for process in processes for below in _descendants(process)], patience)
    _end([p for process in processes for p in (process, *_descendants(process))], patience)


def sweep(mark: str) -> None:
    """Stop everything that carries the mark: what a dead service has left behind."""
    import psutil

    marked = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark:
                marked.append(process)
    _end(marked, patience=3)


def reserve_port(wanted: int, tries: int = 100) -> tuple[int, socket.socket]:
    """The first free TCP port from `wanted` on, and a socket that holds it for us until our server listens there.

    The socket is a UDP one on the same number: it does not hinder the server, but another `up` at the same moment
    cannot have it too and takes the next.
    """
    for port in range(wanted, min(wanted + tries, 65536)):
        holder = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            holder.bind(("127.0.0.1", port))
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
        except OSError:
            holder.close()
            continue
        return port, holder
    raise InputError("no free port", where="127.0.0.1", got=f"{wanted} to {wanted + tries - 1} are all taken")


def _find(handle: Handle) -> Any:
    import psutil

    for child in _children:
        child.poll()
    with suppress(psutil.Error):
        process = psutil.Process(handle.pid)
        same = abs(process.create_time() - handle.started) < _SAME_START
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    return None


def _descendants(process: Any) -> list[Any]:
    import psutil

    with suppress(psutil.Error):
        return list(process.children(recursive=True))
    return []


def _end(processes: Sequence[Any], patience: float) -> None:
    import psutil

    for process in processes:
        with suppress(psutil.Error):
            process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(processes, timeout=patience)
    for process in alive:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=3)
    for child in _children:
        child.poll()


def environment_with(mark: str, changes: Mapping[str, str], without: str) -> dict[str, str]:
    """This process's environment less the variables that start with `without`, with `changes` and the mark."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(without)}
    return {**kept, **changes, MARK: mark}
