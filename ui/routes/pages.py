"""The pages."""

from __future__ import annotations

from fastapi import APIRouter, HTTPException
from fastapi.responses import HTMLResponse

from store.errors import Unavailable
from ui.catalog import Line
from ui.diff import compare
from ui.figures.scatter import Dot, size_kl
from ui.lineage import facts
from ui.render import render
from ui.routes.found import Beginning, Digest, SiteNow, line_of, report_of
from ui.scores import scores_of
from ui.site import Site
from ui.view import BuildView
from ui.words import number, short, size

router = APIRouter(default_response_class=HTMLResponse)


def page(site: Site, template: str, here: str, **context: object) -> HTMLResponse:
    """A page in the frame that all share."""
    elsewhere = {"Prefect": site.prefect_url, "MLflow": site.mlflow_url}
    return HTMLResponse(
        render(
            template, here=here, elsewhere={k: v for k, v in elsewhere.items() if v}, store=site.store.url, **context
        )
    )


@router.get("/")
def builds(site: SiteNow) -> HTMLResponse:
    """The table of builds."""
    lines = site.catalog.lines()
    return page(site, "builds.html", "builds", lines=lines, pins=site.store.builds.pins(), overview=_overview(lines))


def _overview(lines: list[Line]) -> object:
    """Every build as a point; champions and promoted ones stand out."""
    dots = [
        Dot(
            float(line.bytes),
            line.kl,
            f"{line.recipe} {short(line.digest)}: {size(line.bytes)}, KL {number(line.kl)}",
            "mixed" if line.champion or line.promoted else "failed" if line.passed is False else "other",
            line.kl_low,
            line.kl_high,
            f"/builds/{line.digest}",
        )
        for line in lines
        if line.kl and line.bytes
    ]
    return size_kl(dots, 960, 230) if len(dots) > 1 else ""


@router.get("/builds/{digest}")
def build(site: SiteNow, digest: Beginning) -> HTMLResponse:
    """Everything about one build."""
    view = view_of(site, line_of(site, digest))
    return page(site, "build.html", "builds", view=view, report=view.report, line=view.line, packed=_files(site, view))


def _files(site: Site, view: BuildView) -> dict[str, object]:
    """The packed files; none when the store no longer has them."""
    try:
        return dict(site.store.artifacts.load(view.report.packed.digest).files.rows)
    except Unavailable:
        return {}


def view_of(site: Site, line: Line, *, scores: bool = False) -> BuildView:
    """A build with what stands around it in this store."""
    report = report_of(site, line)
    others = [o for o in site.catalog.lines() if o.model == line.model and o.digest != line.digest]
    links = site.links(report.prefect_flow_run_id, report.mlflow_run_id)
    return BuildView(
        report, line, scores_of(site.store, report) if scores else None, others[:200], site.store.url, links
    )


@router.get("/builds/{digest}/explore")
def explore(site: SiteNow, digest: Beginning) -> HTMLResponse:
    """The budget explorer."""
    line = line_of(site, digest)
    return page(site, "explore.html", "builds", line=line, report=report_of(site, line))


@router.get("/diff")
def diff(site: SiteNow, a: str, b: str) -> HTMLResponse:
    """Two builds side by side."""
    first, second = line_of(site, a), line_of(site, b)
    reports = report_of(site, first), report_of(site, second)
    sides = [BuildView(report, line) for report, line in zip(reports, (first, second), strict=True)]
    return page(site, "diff.html", "builds", sides=sides, difference=compare(*reports))


@router.get("/live")
def live(site: SiteNow) -> HTMLResponse:
    """Builds under way."""
    return page(site, "live.html", "live")


@router.get("/digest/{digest}")
def artifact(site: SiteNow, digest: Digest) -> HTMLResponse:
    """What is known of any digest."""
    known = facts(site.store, digest)
    if known is None:
        raise HTTPException(404, f"This store knows nothing of {digest}: from outside it, or pruned.")
    return page(site, "digest.html", "builds", facts=known)
