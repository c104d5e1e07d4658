"""The folders that a build hands over: exported, and told which build and recipe they came from."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.drive import Built
from pipelines.graph import Bound
from pipelines.run import Runner
from schemas.pack import Pack
from schemas.report import AlsoPacked, Packed, Report
from schemas.verify import Verify
from store.artifacts import Artifacts
from store.errors import Missing

if TYPE_CHECKING:
    from pipelines.build import Build

NOTE = "bitsmith-build.json"
"""Beside the packed files, not one of them: two recipes that come to the same weights give the same folder."""


def main_verify(runner: Runner) -> list[Bound]:
    """The verify node of the file format that the plan is priced for; it alone is handed the plan."""
    found = [b for b in runner.bound if isinstance(b.node.spec, Verify)]
    return [b for b in found if "plan" in b.inputs] or found


def other_verify(runner: Runner) -> list[Bound]:
    """Verify nodes of further file formats of the same selection."""
    main = {b.id for b in main_verify(runner)}
    return [b for b in runner.bound if isinstance(b.node.spec, Verify) and b.id not in main]


def folder_of(build: Build, digest: str) -> Path:
    """Where a packed artifact goes."""
    return build.where.builds / f"{build.runner.recipe.name}-{digest[:12]}"


def export(build: Build, digest: str) -> Path:
    """The artifact's folder, written unless it is there, mended if it is. Unavailable if the store lost any of it."""
    artifacts, folder = build.runner.store.artifacts, folder_of(build, digest)
    if folder.is_dir():
        _mend(artifacts, digest, folder)
    else:
        artifacts.export(digest, folder)
    return folder


def still_delivered(report: Report, artifacts: Artifacts) -> bool:
    """Whether all folders of a recorded build are there, mended if need be. Unavailable as for `export`."""
    packed = (report.packed, *(each.packed for each in report.also))
    if not all(Path(each.path).is_dir() for each in packed):
        return False
    for each in packed:
        _mend(artifacts, each.digest, Path(each.path))
    return True


def _mend(artifacts: Artifacts, digest: str, folder: Path) -> None:
    if lost := artifacts.missing(digest):
        raise Missing(min(lost), artifacts.blobs.url)
    if names := artifacts.mend(digest, folder):
        print(f"note: {folder}: exported again, missing or changed: {', '.join(names)}", file=sys.stderr)


def deliver_others(build: Build, built: Built) -> tuple[AlsoPacked, ...]:
    """Export the selection's further file formats; what each of them is and measures."""
    return tuple(_other(build, built, verify) for verify in other_verify(build.runner))


def _other(build: Build, built: Built, verify: Bound) -> AlsoPacked:
    runner, (node, port) = build.runner, verify.inputs["packed"]
    digest = built.outputs[node][port]
    packed, verdict = _meta(runner, digest), _meta(runner, built.outputs[verify.id]["verdict"])
    spec = runner.by_id[node].node.spec
    assert isinstance(spec, Pack)
    return AlsoPacked(
        node=node,
        format=spec.format,
        packed=Packed(path=str(export(build, digest)), digest=digest),
        bytes=packed["bytes"],
        bpw=packed["bpw"],
        measured=verdict["metrics"]["mixed"],
        gates=verdict["gates"],
        passed=verdict["passed"],
    )


def _meta(runner: Runner, digest: str) -> Mapping[str, Any]:
    return runner.store.artifacts.load(digest).meta


def write_notes(report: Report) -> None:
    """Which build, recipe and original each delivered folder came from; the newest build's, when several did."""
    note = {
        "build": report.build_digest,
        "recipe_digest": report.recipe_digest,
        "recipe": report.recipe_document,
        "model": report.model,
        "created": report.created,
        "libraries": report.libraries,
    }
    for packed in (report.packed, *(each.packed for each in report.also)):
        path = Path(packed.path) / NOTE
        path.write_text(json.dumps(note, indent=2, ensure_ascii=False) + "\n", "utf-8")
