"""Where the tasks of a flow run: one after the other in its own process, or on the processes of a Dask cluster."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from schemas.errors import InputError

if TYPE_CHECKING:
    from prefect import Task
    from prefect_dask import DaskTaskRunner

RunnerKind = Literal["dask"]
BATCHES = 6
"""A Prefect task costs about 0.1 s, so a node of many items is handed out in a few batches; caching stays per item."""
BATCHES_PER_WORKER = 2
"""At least, so that a slow batch does not leave the other workers idle for long."""
PATIENCE = 5.0
"""Seconds to wait for a scheduler's answer."""


@dataclass(frozen=True)
class Distribution:
    """What the user asked for. `workers` processes on this machine, or whatever is behind `scheduler`."""

    runner: RunnerKind | None = None
    scheduler: str | None = None
    workers: int | None = None

    def check(self, prefect_api: str | None) -> None:
        """Raise InputError for a wish that cannot be met; a scheduler is asked, for a few seconds."""
        if self.runner is None and (self.scheduler is not None or self.workers is not None):
            raise InputError("--scheduler and --workers need a task runner", where="--runner", fix="add --runner dask")
        if self.scheduler is not None and self.workers is not None:
            raise InputError("a scheduler has its own workers", where="--workers", fix="give --scheduler or --workers")
        if self.workers is not None and self.workers < 1:
            raise InputError("too few workers", where="--workers", got=self.workers, wanted="1 or more")
        if self.runner is not None and not prefect_api:
            raise InputError(
                "workers report to a Prefect server, and none is running",
                where="--runner dask",
                fix="start one (`bitsmith up`), or set PREFECT_API_URL to one that the workers reach",
            )
        if self.scheduler is not None:
            _check_scheduler(self.scheduler)


def _check_scheduler(address: str) -> None:
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


class Cluster:
    """Runs batches of a node's items; without a Dask task runner, one after the other in this process."""

    def __init__(self, dask: DaskTaskRunner | None = None) -> None:
        self._dask = dask

    def batches(self, labels: Sequence[str]) -> list[Sequence[str]]:
        """Labels in order, cut into as many batches as keep the workers busy."""
        workers = len(self._dask.client.nthreads()) if self._dask else 1
        size = max(1, -(-len(labels) // max(BATCHES, BATCHES_PER_WORKER * workers)))
        return [labels[i : i + size] for i in range(0, len(labels), size)]

    def run(self, tasks: Sequence[tuple[Task[Any, Any], dict[str, Any]]]) -> list[Any]:
        """Results of tasks that do not depend on one another, in order."""
        if self._dask is None:
            return [task(**arguments) for task, arguments in tasks]
        futures = [self._dask.submit(task, parameters=arguments) for task, arguments in tasks]
        return [future.result() for future in futures]


@contextmanager
def cluster(wanted: Distribution) -> Iterator[Cluster]:
    """Start, or connect to, what was asked for; a local Dask cluster ends with the context."""
    if wanted.runner is None:
        yield Cluster()
        return
    from prefect_dask import DaskTaskRunner

    logging.getLogger("distributed").setLevel(logging.WARNING)
    # A process each, because a step uses all of one; loopback only.
    local = {"host": "127.0.0.1", "dashboard_address": None, "threads_per_worker": 1, "processes": True}
    runner = (
        DaskTaskRunner(address=wanted.scheduler)
        if wanted.scheduler
        else DaskTaskRunner(cluster_kwargs={**local, "n_workers": wanted.workers or 2})
    )
    with runner:
        yield Cluster(runner)
