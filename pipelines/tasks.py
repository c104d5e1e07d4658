"""The Prefect task that computes items, in the process of the flow or in a worker on another machine.

A job says all that a machine needs to know: nothing but the store is shared, and only digests travel.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from prefect import task

from pipelines.drive import Outputs
from pipelines.progress import reporter
from pipelines.run import Place, Progress, Runner
from pipelines.settings import settings
from schemas.recipe import Recipe
from store.open import Store

_ONE_AT_A_TIME = threading.Lock()
"""A step uses all of a process: its device, torch's threads, what it remembers. Dask workers may have more threads."""
_OPEN: dict[Job, tuple[Runner, Progress]] = {}
"""The build that this process has open, so that sources are digested once, and whom it tells how far it is."""


@dataclass(frozen=True)
class Job:
    """One run of a build: the explicit recipe as JSON and the store's address.

    Source paths and URLs in the recipe, and the store's, must mean the same to every worker; credentials for them are
    taken from each worker's own environment.
    """

    run: str
    recipe: str
    store: str
    device: str


def share(job: Job, runner: Runner, progress: Progress) -> None:
    """Let tasks of this process use what the flow itself uses."""
    _OPEN.clear()
    _OPEN[job] = (runner, progress)


def _opened(job: Job) -> tuple[Runner, Progress]:
    if job not in _OPEN:
        place = Place(job.device, settings(job.store).cache)
        share(job, Runner(Recipe.model_validate_json(job.recipe), Store(job.store), place), reporter())
    return _OPEN[job]


def _compute(
    job: Job, node: str, outputs: Outputs, labels: Sequence[str], forced: Sequence[str]
) -> tuple[int, list[str]]:
    with _ONE_AT_A_TIME:
        runner, progress = _opened(job)
        runner.forced = set(forced)
        computed = runner.execute(node, outputs, labels, progress)
        return computed, sorted(set(forced) - runner.forced)


@task(persist_result=False)
def run_items(
    job: Job, node: str, outputs: Outputs, labels: Sequence[str], forced: Sequence[str]
) -> tuple[int, list[str]]:
    """Compute some items of a node, believing no trace of `forced` keys.

    Returns how many this process computed itself, and those of the forced keys that are whole again.
    """
    # Dask pickles this function by value, globals included; `_compute` goes by name.
    return _compute(job, node, outputs, labels, forced)
