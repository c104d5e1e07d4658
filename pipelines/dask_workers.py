"""Dask workers: a scheduler that is asked, or processes of this machine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from schemas.errors import InputError

if TYPE_CHECKING:
    from prefect_dask import DaskTaskRunner

PATIENCE = 5.0
"""Seconds to wait for a scheduler's answer."""


def check_scheduler(address: str) -> None:
    """InputError unless a Dask scheduler with at least one worker answers there."""
    try:
        workers = asyncio.run(asyncio.wait_for(_workers(address), PATIENCE))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            "no Dask scheduler answers",
            where=f"--scheduler {address}",
            got=" ".join(str(error).split()) or f"no answer within {PATIENCE:g} s",
            wanted="the address of a running scheduler, e.g. tcp://10.0.0.5:8786",
            fix="start one with `dask scheduler`, and workers with `dask worker ADDRESS --nthreads 1`",
        ) from error
    if not workers:
        raise InputError(
            "the Dask scheduler has no workers",
            where=f"--scheduler {address}",
            fix=f"start some: `dask worker {address} --nthreads 1`",
        )


async def _workers(address: str) -> int:
    """How many workers a scheduler has. Not by a Client: one that failed keeps the process from ending for 20 s."""
    from distributed.comm.core import connect
    from distributed.core import send_recv

    comm = await connect(address, timeout=PATIENCE)  # type: ignore[no-untyped-call]
    try:
        return len((await send_recv(comm, op="identity"))["workers"])
    finally:
        comm.abort()


@contextmanager
def dask_runner(scheduler: str | None, workers: int) -> Iterator[DaskTaskRunner]:
    """A started task runner; a cluster of this machine ends with the context."""
    from prefect_dask import DaskTaskRunner

    logging.getLogger("distributed").setLevel(logging.WARNING)
    # A process each, because a step uses all of one; loopback only.
    local = {"host": "127.0.0.1", "dashboard_address": None, "threads_per_worker": 1, "processes": True}
    runner = (
        DaskTaskRunner(address=scheduler)
        if scheduler
        else DaskTaskRunner(cluster_kwargs={**local, "n_workers": workers})
    )
    with runner:
        yield runner


def workers_of(runner: DaskTaskRunner) -> int:
    """How many work for it."""
    return len(runner.client.nthreads())
