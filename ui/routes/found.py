"""What a request names, or a 404 that says what is not there."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, HTTPException, Path, Request

from schemas.report import Report
from ui.catalog import Line
from ui.site import Site


def _site(request: Request) -> Site:
    site: Site = request.app.state.site
    return site


SiteNow = Annotated[Site, Depends(_site)]
Digest = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]
Beginning = Annotated[str, Path(pattern=r"^[0-9a-f]{6,64}$")]


def line_of(site: Site, digest: str) -> Line:
    """The build whose digest begins like this."""
    line = site.catalog.find(digest)
    if line is None:
        raise HTTPException(404, f"No build of this store, or more than one, begins with {digest}.")
    return line


def report_of(site: Site, line: Line) -> Report:
    """Its report."""
    report = site.catalog.report(line)
    if report is None:
        raise HTTPException(
            409,
            f"The record of build {line.digest[:12]} was written by another version of Bitsmith. "
            "Run its recipe again; what is cached is not computed.",
        )
    return report
