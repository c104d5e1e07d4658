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
from store.running import Running


def builds(options: argparse.Namespace) -> int:
    """List the recorded builds, newest first, those that run, and the pins."""
    store = _opened(options)
    found, pins = store.builds.list(), store.builds.pins()
    if found:
        show_plan([_row(build) for build in found], title=f"{len(found)} build(s) in {store.url}")
    else:
        print(f"no builds in {store.url}")
    for running in store.under_way.list():
        print(_running(running))
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
    """Make a build the champion of its recipe by a person's decision, which no rule but the gates overrules."""
    where = settings(options.store, options.tracking)
    store = _opened(options)
    build = store.builds.find(options.digest)
    recipe = str(build.report.get("recipe", ""))
    if not options.undo and not build.report.get("passed"):
        raise InputError(
            "a build whose gates failed cannot be promoted",
            where=f"build {build.digest[:12]}",
            got=", ".join(gate["name"] for gate in build.report.get("gates", ()) if not gate["passed"]),
            fix="build again with gates that it can pass",
        )
    with store.leases.hold(f"champions/{recipe}", timeout=60):
        before = store.builds.champion(recipe)
        store.builds.promote(build.digest, not options.undo)
        if not options.undo:
            store.builds.crown(recipe, build.digest)
        elif before == build.digest:
            store.builds.depose(recipe)
    print(f"{build.digest} is {'no longer ' if options.undo else ''}promoted")
    print(_change(recipe, before, store.builds.champion(recipe)))
    print(_in_mlflow(where.tracking, recipe, store.builds.champion(recipe)))
    return 0


def _change(recipe: str, before: str | None, after: str | None) -> str:
    if after == before:
        return f"champion of {recipe}: {after[:12] if after else 'none'}, as before"
    now = after[:12] if after else "none; the next build that passes becomes it"
    return f"champion of {recipe}: {now}" + (f", in place of {before[:12]}" if before else "")


def _in_mlflow(tracking: str, recipe: str, champion: str | None) -> str:
    """What counts is the store; an MLflow that is not there is told by a later build."""
    from store.lineage import move_champion

    try:
        moved = move_champion(tracking, recipe, champion)
    except InputError as error:
        return f"MLflow's alias stays where it is: {error}"
    return f"MLflow: {'the alias champion follows' if moved else 'no version of this build, so no alias'}"


def _opened(options: argparse.Namespace) -> Store:
    store = Store(settings(options.store).store)
    store.check_ours()
    return store


def _running(running: Running) -> str:
    if not running.alive:
        when = datetime.fromtimestamp(running.updated).isoformat(" ", "minutes")
        return f"{running.recipe}: killed at {running.node or 'its start'} on {running.host}, last heard of {when}"
    pace = "" if running.rate is None else f", {running.rate:.2g}/s"
    left = "" if running.eta is None else f", {running.eta:.0f} s left of it"
    node = f"{running.node}: {running.what}" if running.what else running.node
    return (
        f"{running.recipe} runs: node {running.nodes_done + 1} of {running.nodes_total}, {node} "
        f"{running.done}/{running.total}{pace}{left} (process {running.pid} on {running.host})"
    )


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
        "standing": "champion" if build.champion else "promoted" if build.promoted else "",
    }
