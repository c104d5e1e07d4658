"""Files to take away."""

from __future__ import annotations

import csv
import io

from fastapi import APIRouter, HTTPException
from fastapi.responses import HTMLResponse, Response

from store.errors import Unavailable
from ui.files import attachment, stored_file
from ui.report import report_html
from ui.routes.found import Beginning, Digest, SiteNow, line_of, report_of
from ui.routes.pages import view_of
from ui.security import REPORT_POLICY
from ui.words import short

router = APIRouter()


@router.get("/builds/{digest}/report.html")
def html(site: SiteNow, digest: Beginning, save: bool = False) -> Response:
    """The self-contained report, to look at or (`?save=1`) to keep."""
    view = view_of(site, line_of(site, digest), scores=True)
    name = f"{view.report.recipe}-{short(view.report.build_digest)}.html"
    if save:
        return attachment(report_html(view), name, "text/html")
    return HTMLResponse(report_html(view), headers={"Content-Security-Policy": REPORT_POLICY})


@router.get("/builds/{digest}/report.json")
def record(site: SiteNow, digest: Beginning) -> Response:
    """The build report."""
    report = report_of(site, line_of(site, digest))
    return attachment(
        report.model_dump_json(indent=1), f"{report.recipe}-{short(report.build_digest)}.json", "application/json"
    )


@router.get("/builds/{digest}/recipe.yaml")
def recipe(site: SiteNow, digest: Beginning) -> Response:
    """The recipe, as `bitsmith run` takes it."""
    report = report_of(site, line_of(site, digest))
    text = str(site.explorer.ask("recipe", build=report.build_digest)["yaml"])
    return attachment(text, f"{report.recipe}.yaml", "application/yaml")


@router.get("/builds/{digest}/allocation.csv")
def allocation(site: SiteNow, digest: Beginning) -> Response:
    """What every unit got."""
    report = report_of(site, line_of(site, digest))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["unit", "format", "bytes", "score"])
    writer.writerows([row.unit, row.format, row.bytes, row.score] for row in report.allocation)
    return attachment(out.getvalue(), f"{report.recipe}-allocation.csv", "text/csv")


@router.get("/builds/{digest}/packed/{name:path}")
def packed(site: SiteNow, digest: Beginning, name: str) -> Response:
    """A file of the packed folder. Names are looked up in the artifact's listing, never joined to a path."""
    return _file(site, report_of(site, line_of(site, digest)).packed.digest, name)


@router.get("/digest/{digest}/files/{name:path}")
def file(site: SiteNow, digest: Digest, name: str) -> Response:
    """A file of any artifact."""
    return _file(site, digest, name)


def _file(site: SiteNow, artifact: str, name: str) -> Response:
    try:
        row = site.store.artifacts.load(artifact).files.rows.get(name)
        if row is None:
            raise HTTPException(404, "The artifact has no file of this name.")
        return stored_file(site.store, str(row["digest"]), name, int(row["size"]))
    except Unavailable as error:
        raise HTTPException(410, f"No longer whole in the store: {short(error.digest)}.") from error
    except (PermissionError, OSError) as error:
        raise HTTPException(403, "This is not a plain file of the store.") from error
