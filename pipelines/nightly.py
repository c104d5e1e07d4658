"""The Prefect flow `nightly`: the same recipe again, which costs seconds when nothing changed.

Prefect's events say how a night went: see EVENTS. A night that fails is also a failed flow run, and one whose process
was killed becomes Crashed (pipelines/servers.py); automations can act on all three.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

from prefect import flow, get_run_logger, runtime
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.events import emit_event
from prefect.states import Completed

from pipelines.build import Build, from_traces, prepare, read_report
from pipelines.difference import difference, headline
from pipelines.distribution import Distribution
from pipelines.finish import check_gates
from pipelines.flow import carry_out
from pipelines.settings import settings
from schemas.report import Report

Night = Literal["unchanged", "champion", "kept", "failed"]
EVENTS: dict[Night, str] = {
    "unchanged": "bitsmith.nightly.unchanged",
    "champion": "bitsmith.nightly.champion",
    "kept": "bitsmith.nightly.kept",
    "failed": "bitsmith.nightly.failed",
}
"""Nothing to do; a new champion; a build that is not the champion, which stays; no build, or gates that failed."""


@flow(name="nightly", persist_result=False, flow_run_name="nightly {recipe}", validate_parameters=True)
def nightly(
    recipe: str,
    set: dict[str, Any] | None = None,
    store: str | None = None,
    tracking: str | None = None,
    device: str = "auto",
) -> State[None]:
    """Build a recipe again if anything that it depends on changed, and report the difference to the build before.

    The state of the run is named after what happened: Unchanged, Champion or Kept. Raises what a build raises.
    """
    name = Path(recipe).stem
    try:
        build = prepare(recipe, tuple((set or {}).items()), settings(store, tracking), device)
        name = build.recipe.name
        known = from_traces(build, time.perf_counter())
        if known is not None:
            check_gates(known)  # what failed last night, and is the same today, fails again
            said = f"nothing changed since build {known.build_digest[:12]} of {known.created}; nothing was computed"
            return _tell("unchanged", name, said, known)
        before = _before(build)
        report = carry_out(build, device, Distribution())
        _publish(report, before)
        check_gates(report)
        night: Night = "champion" if report.standing is not None and report.standing.champion else "kept"
        return _tell(night, name, headline(report, before), report)
    except Exception as error:
        _emit("failed", name, f"{type(error).__name__}: {error}", getattr(error, "report", None))
        raise


def _before(build: Build) -> Report | None:
    """The newest build of this recipe."""
    found = (read_report(each.report) for each in build.runner.store.builds.list())
    return next((each for each in found if each is not None and each.recipe == build.recipe.name), None)


def _publish(report: Report, before: Report | None) -> None:
    key = f"nightly-{report.recipe.replace('_', '-')}"
    create_markdown_artifact(difference(report, before), key=key, description=headline(report, before))


def _tell(night: Night, recipe: str, said: str, report: Report) -> State[None]:
    """One line in the log, one event, and the state of the run."""
    get_run_logger().info("%s: %s", recipe, said)
    _emit(night, recipe, said, report)
    return Completed(name=night.capitalize(), message=said)


def _emit(night: Night, recipe: str, said: str, report: Report | None) -> None:
    """The event's resource is the recipe; the flow run is related to it."""
    facts = {"message": said, "recipe": recipe}
    if report is not None:
        facts |= {"build": report.build_digest, "packed": report.packed.path, "mlflow_run": report.mlflow_run_id or ""}
    run = str(runtime.flow_run.id or "")
    related = [{"prefect.resource.id": f"prefect.flow-run.{run}", "prefect.resource.role": "flow-run"}] if run else []
    emit_event(EVENTS[night], {"prefect.resource.id": f"bitsmith.recipe.{recipe}"}, related=related, payload=facts)
