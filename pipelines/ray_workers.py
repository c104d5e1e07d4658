"""Ray workers: a running cluster, or processes of this machine. Optional: the extra `ray` installs what is needed."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from schemas.errors import InputError

if TYPE_CHECKING:
    from prefect_ray import RayTaskRunner

PATIENCE = 5.0
"""Seconds to wait for a connection to a cluster's head."""
SHORT = "/tmp"
"""Where a cluster of this machine keeps its sockets: their paths may have 107 bytes, and Ray adds 70."""
OBJECTS = 80 << 20
"""Bytes of Ray's object store, the least that it takes: only digests travel."""


def check_ray(address: str | None) -> None:
    """InputError unless Ray is installed and, if one is named, the head of a cluster accepts connections."""
    if find_spec("prefect_ray") is None:
        raise InputError(
            "Ray is not installed",
            where="--runner ray",
            fix="install the extra: .venv/bin/uv pip install --python .venv/bin/python -c constraints.txt -e '.[ray]'",
        )
    if address is None:
        return
    try:
        host, port = _host_and_port(address)
        socket.create_connection((host, port), PATIENCE).close()
    except (OSError, ValueError) as error:
        raise InputError(
            "no Ray cluster answers",
            where=f"--scheduler {address}",
            got=error,
            wanted="ray://HOST:10001, or HOST:6379 on a machine that belongs to the cluster",
            fix="start one with `ray start --head --ray-client-server-port 10001`",
        ) from error


def _host_and_port(address: str) -> tuple[str, int]:
    parts = urlsplit(address if "://" in address else f"//{address}")
    if parts.scheme not in ("", "ray") or not parts.hostname or parts.port is None:
        raise ValueError("not an address of a Ray cluster")
    return parts.hostname, parts.port


@contextmanager
def ray_runner(address: str | None, workers: int) -> Iterator[RayTaskRunner]:
    """A started task runner; a cluster of this machine ends with the context."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from prefect_ray import RayTaskRunner

    with TemporaryDirectory(prefix="ray-", dir=SHORT, ignore_cleanup_errors=True) as folder:
        local = {
            "_node_ip_address": "127.0.0.1",
            "_temp_dir": folder,
            "include_dashboard": False,
            "log_to_driver": False,
            "num_cpus": workers,
            "object_store_memory": OBJECTS,
        }
        with RayTaskRunner(address=address, init_kwargs={} if address else local) as runner:
            yield runner


def workers_of_ray() -> int:
    """How many tasks the cluster that this process is connected to runs at a time."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))
