"""One build from recipe to report, apart from who runs the nodes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from pipelines.assemble import build_digest
from pipelines.delivery import still_delivered
from pipelines.drive import Built, NotCached, look_up
from pipelines.expand import expand
from pipelines.recipe_file import load_recipe
from pipelines.run import Place, Runner
from pipelines.settings import Settings
from schemas.recipe import Recipe, ShortRecipe
from schemas.report import Report
from store.errors import Unavailable
from store.open import Store


@dataclass(frozen=True)
class Build:
    """A recipe bound to its places."""

    recipe: Recipe
    short: ShortRecipe | None
    runner: Runner
    where: Settings


def prepare(name: str, assignments: Sequence[tuple[str, Any]], where: Settings, device: str = "auto") -> Build:
    """Read, validate and expand a recipe, open its store; nothing is computed."""
    loaded = load_recipe(name, assignments)
    short = loaded if isinstance(loaded, ShortRecipe) else None
    recipe = expand(short) if short is not None else loaded
    assert isinstance(recipe, Recipe)
    store = Store(where.store)
    return Build(recipe, short, Runner(recipe, store, Place(device, where.cache)), where)


def recorded(build: Build, built: Built) -> Report | None:
    """The report of an earlier, finished build with the same outputs; None if it was written by another version."""
    record = build.runner.store.builds.load(build_digest(build.recipe, built))
    return read_report(record) if record is not None else None


def from_traces(build: Build, started: float) -> Report | None:
    """The recorded report of a build of which every trace hits, with this run's node table; else None.

    None as well when a folder that it delivered is gone, or the store has lost what was packed.
    """
    try:
        built: Built = look_up(build.runner)
        report = recorded(build, built)
        if report is None or not still_delivered(report, build.runner.store.artifacts):
            return None
    except (NotCached, Unavailable):
        return None
    return report.model_copy(update={"nodes": built.rows, "seconds": round(time.perf_counter() - started, 3)})


def read_report(record: Mapping[str, Any]) -> Report | None:
    """A build's record as a Report; None if another version of Bitsmith wrote it, with other fields."""
    try:
        return Report.model_validate(record)
    except ValidationError:
        return None
