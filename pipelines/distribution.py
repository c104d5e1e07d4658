"""Where the tasks of a flow run: one after the other in its own process, or on the workers of Dask or Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, assert_never

from pipelines.dask_workers import check_scheduler, dask_runner, workers_of
from pipelines.ray_workers import check_ray, ray_runner, workers_of_ray
from schemas.errors import InputError

if TYPE_CHECKING:
    from prefect import Task
    from prefect.task_runners import TaskRunner

RunnerKind = Literal["dask", "ray"]
BATCHES = 6
"""A Prefect task costs about 0.1 s, so a node of many items is handed out in a few batches; caching stays per item."""
BATCHES_PER_WORKER = 2
"""At least, so that a slow batch does not leave the other workers idle for long."""
WORKERS = 2
"""Processes of this machine if no number is given."""


@dataclass(frozen=True)
class Distribution:
    """What the user asked for. `workers` processes on this machine, or whatever is behind `scheduler`."""

    runner: RunnerKind | None = None
    scheduler: str | None = None
    workers: int | None = None

    def check(self, prefect_api: str | None) -> None:
        """Raise InputError for a wish that cannot be met; a scheduler is asked, for a few seconds."""
        if self.runner is None and (self.scheduler is not None or self.workers is not None):
            fix = "add --runner dask or --runner ray"
            raise InputError("--scheduler and --workers need a task runner", where="--runner", fix=fix)
        if self.scheduler is not None and self.workers is not None:
            raise InputError("a scheduler has its own workers", where="--workers", fix="give --scheduler or --workers")
        if self.workers is not None and self.workers < 1:
            raise InputError("too few workers", where="--workers", got=self.workers, wanted="1 or more")
        if self.runner is not None and not prefect_api:
            raise InputError(
                "workers report to a Prefect server, and none is running",
                where=f"--runner {self.runner}",
                fix="start one (`bitsmith up`), or set PREFECT_API_URL to one that the workers reach",
            )
        if self.runner == "ray":
            check_ray(self.scheduler)
        elif self.scheduler is not None:
            check_scheduler(self.scheduler)


class Cluster:
    """Runs batches of a node's items; without a task runner, one after the other in this process."""

    def __init__(self, runner: TaskRunner[Any] | None = None, workers: Callable[[], int] = lambda: 1) -> None:
        self._runner, self._workers = runner, workers

    def batches(self, labels: Sequence[str]) -> list[Sequence[str]]:
        """Labels in order, cut into as many batches as keep the workers busy."""
        size = max(1, -(-len(labels) // max(BATCHES, BATCHES_PER_WORKER * self._workers())))
        return [labels[i : i + size] for i in range(0, len(labels), size)]

    def run(self, tasks: Sequence[tuple[Task[Any, Any], dict[str, Any]]]) -> Iterator[Any]:
        """Results of tasks that do not depend on one another, in order, each once it and those before it are there."""
        if self._runner is None:
            yield from (task(**arguments) for task, arguments in tasks)
            return
        futures = [self._runner.submit(task, parameters=arguments) for task, arguments in tasks]
        yield from (future.result() for future in futures)


@contextmanager
def cluster(wanted: Distribution) -> Iterator[Cluster]:
    """Start, or connect to, what was asked for; a cluster of this machine ends with the context."""
    match wanted.runner:
        case None:
            yield Cluster()
        case "dask":
            with dask_runner(wanted.scheduler, wanted.workers or WORKERS) as dask:
                yield Cluster(dask, lambda: workers_of(dask))
        case "ray":
            with ray_runner(wanted.scheduler, wanted.workers or WORKERS) as ray:
                yield Cluster(ray, workers_of_ray)
        case _:
            assert_never(wanted.runner)
