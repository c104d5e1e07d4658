"""`bitsmith builds`, `pin`, `unpin`, `promote`: what was built, and what prune must keep."""

from __future__ import annotations

import argparse
from datetime import datetime
from typing import Any

from pipelines.origins import full_digest, open_origins
from pipelines.settings import settings
from pipelines.show import show_plan
from schemas.errors import InputError
from store.builds import Build
from store.open import Store


def builds(options: argparse.Namespace) -> int:
    """List the recorded builds, newest first, and the pins."""
    store = _opened(options)
    found, pins = store.builds.list(), store.builds.pins()
    if found:
        show_plan([_row(build) for build in found], title=f"{len(found)} build(s) in {store.url}")
    else:
        print(f"no builds in {store.url}")
    for name, digest in sorted(pins.items()):
        print(f"pin {name}: {digest}")
    return 0


def pin(options: argparse.Namespace) -> int:
    """Keep a build or an artifact under a name."""
    store = _opened(options)
    digest = full_digest(open_origins(store.url), options.digest)
    store.builds.pin(options.name, digest)
    print(f"pinned {digest} as {options.name}")
    return 0


def unpin(options: argparse.Namespace) -> int:
    """Drop a pin."""
    store = _opened(options)
    pins = store.builds.pins()
    if options.name not in pins:
        known = ", ".join(sorted(pins)) or "no pins"
        raise InputError("no such pin", where=store.url, got=options.name, wanted=known)
    store.builds.unpin(options.name)
    print(f"{options.name} no longer keeps {pins[options.name]}")
    return 0


def promote(options: argparse.Namespace) -> int:
    """Mark a build as good enough to use, or take that back."""
    store = _opened(options)
    build = store.builds.find(options.digest)
    store.builds.promote(build.digest, not options.undo)
    print(f"{build.digest} is {'no longer ' if options.undo else ''}promoted")
    return 0


def _opened(options: argparse.Namespace) -> Store:
    store = Store(settings(options.store).store)
    store.check_ours()
    return store


def _row(build: Build) -> dict[str, object]:
    """A line of the list. Records of other versions of Bitsmith may lack fields."""
    report: dict[str, Any] = build.report
    kl = report.get("mixed", {}).get("kl", {}).get("value")
    return {
        "build": build.digest[:12],
        "recipe": report.get("recipe", ""),
        "when": datetime.fromtimestamp(build.modified).isoformat(" ", "minutes"),
        "bytes": report.get("bytes", {}).get("actual"),
        "kl": None if kl is None else round(kl, 5),
        "gates": "passed" if report.get("passed") else "FAILED",
        "promoted": "yes" if build.promoted else "",
    }
