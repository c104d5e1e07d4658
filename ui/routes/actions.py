"""Requests that change something. Each needs the token (ui/security.py) and is a command of the command line."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from fastapi import Path as PathPart
from pydantic import BaseModel, ConfigDict, Field

from ui.routes.found import Beginning, SiteNow, line_of

router = APIRouter()

PIN = r"^[A-Za-z0-9][A-Za-z0-9_.@+-]{0,127}$"


class Promotion(BaseModel):
    """Set the mark or take it back."""

    model_config = ConfigDict(extra="forbid")

    promoted: bool


class Pinned(BaseModel):
    """A name for a digest that prune keeps."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=PIN)
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")


class Recipe(BaseModel):
    """A recipe as YAML."""

    model_config = ConfigDict(extra="forbid")

    recipe: str


@router.post("/api/builds/{digest}/promote")
def promote(site: SiteNow, digest: Beginning, promotion: Promotion) -> dict[str, str]:
    """`bitsmith promote`."""
    undo = () if promotion.promoted else ("--undo",)
    return {"said": site.runs.command("promote", line_of(site, digest).digest, *undo)}


@router.post("/api/pins")
def pin(site: SiteNow, pinned: Pinned) -> dict[str, str]:
    """`bitsmith pin`."""
    return {"said": site.runs.command("pin", pinned.name, pinned.digest)}


@router.delete("/api/pins/{name}")
def unpin(site: SiteNow, name: Annotated[str, PathPart(pattern=PIN)]) -> dict[str, str]:
    """`bitsmith unpin`."""
    return {"said": site.runs.command("unpin", name)}


@router.post("/api/runs")
def run(site: SiteNow, recipe: Recipe) -> dict[str, str]:
    """`bitsmith run`; the build goes on when nobody looks."""
    return {"id": site.runs.start(recipe.recipe).id}


@router.post("/api/runs/{run}/stop")
def stop(site: SiteNow, run: str) -> dict[str, str]:
    """Interrupt a build; what it has finished stays in the store."""
    site.runs.stop(run)
    return {"said": "interrupted"}
