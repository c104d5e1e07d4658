"""What the pages' scripts ask for: JSON, and figures that take longer than a page may."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict

from ui.figures.sensitivity import sensitivity
from ui.reasons import reasons
from ui.routes.found import Beginning, SiteNow, line_of, report_of
from ui.routes.pages import view_of

router = APIRouter()


class Question(BaseModel):
    """A budget and pins (unit -> format); without a budget the build's own."""

    model_config = ConfigDict(extra="forbid")

    budget: dict[str, float | int | str] | None = None
    pins: dict[str, str] = {}


@router.get("/health")
def health() -> dict[str, str]:
    """That the page answers."""
    return {"status": "ok"}


@router.get("/api/builds/{digest}/reasons")
def why(site: SiteNow, digest: Beginning) -> dict[str, list[str]]:
    """Why each node ran or did not."""
    return reasons(site.store, report_of(site, line_of(site, digest)))


@router.get("/api/builds/{digest}/sensitivity", response_class=HTMLResponse)
def drawn(site: SiteNow, digest: Beginning) -> str:
    """The sensitivity figure with every format; empty when the scores are gone."""
    view = view_of(site, line_of(site, digest), scores=True)
    return str(sensitivity(view.report.allocation, view.scores)) if view.scores else ""


@router.get("/api/explore/{digest}")
def opened(site: SiteNow, digest: Beginning) -> dict[str, Any]:
    """The cost table of a build."""
    return site.explorer.ask("open", build=line_of(site, digest).digest)


@router.post("/api/explore/{digest}/solve")
def solved(site: SiteNow, digest: Beginning, question: Question) -> dict[str, Any]:
    """The plan under a budget."""
    return _asked(site, "solve", digest, question)


@router.post("/api/explore/{digest}/front")
def front(site: SiteNow, digest: Beginning, question: Question) -> dict[str, Any]:
    """Size against predicted KL."""
    return _asked(site, "front", digest, question)


@router.post("/api/explore/{digest}/recipe", response_class=PlainTextResponse)
def recipe(site: SiteNow, digest: Beginning, question: Question) -> str:
    """The recipe with this budget and these pins, as YAML."""
    return str(_asked(site, "recipe", digest, question)["yaml"])


def _asked(site: SiteNow, operation: str, digest: str, question: Question) -> dict[str, Any]:
    build = line_of(site, digest).digest
    return site.explorer.ask(operation, build=build, **question.model_dump(exclude_none=True))


@router.get("/api/live")
def live(site: SiteNow) -> dict[str, Any]:
    """Builds under way, and those that this page has started, newest first."""
    started = site.runs.newest_first()
    return {
        "now": time.time(),
        "running": [asdict(each) for each in site.store.under_way.list()],
        "started": [{"id": s.id, "begun": s.begun, "code": s.code, "log": s.log, "pid": s.child.pid} for s in started],
        "builds": len(site.catalog.lines()),
    }
