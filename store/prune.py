"""Prune: delete what no kept build, no pin and no running build needs."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from schemas.errors import InputError
from store.blobs import Blobs
from store.builds import digests_in
from store.open import Store
from store.remote import THREADS
from store.traces import Trace
from store.walk import Reached, walk

DAY = 86400.0
LEFTOVERS = 1 * DAY
"""Age from which temporary files, unfinished uploads and released leases of whoever are taken for abandoned."""

QUARANTINE = 30 * DAY
"""How long damaged files are kept for whoever wants to look at them."""


@dataclass(frozen=True)
class Pruned:
    """What went, or would go: digests of builds, keys of traces, paths of files, bytes.

    `running`: how many builds were at work. `before`: only what is older than this time (seconds since 1970) goes.
    """

    dry_run: bool
    running: int
    before: float
    builds: tuple[str, ...]
    traces: tuple[str, ...]
    artifacts: tuple[str, ...]
    objects: tuple[str, ...]
    bytes: int


def prune(store: Store, *, keep_builds: int = 10, dry_run: bool = False) -> Pruned:
    """Keep the newest builds, the promoted ones, the champions, the pins, all that these consist of, and their traces.

    While builds run, every trace stays with all that it leads to, and so does whatever was stored or stored again since
    the first of them began. Builds that start meanwhile wait (Store.running). One prune at a time.
    """
    store.check_ours()
    with store.leases.hold("prune/prune", timeout=5.0):
        running = store.leases.holders("builds")
        result = _choose(store, keep_builds, [facts.get("since", 0.0) for facts in running.values()])
        if not dry_run:
            _remove(store, result)
            _tidy(store)
        return replace(result, dry_run=dry_run)


def _choose(store: Store, keep_builds: int, running: list[float]) -> Pruned:
    """What would go. `running`: when the builds that are at work began."""
    before = min(running, default=time.time())
    gone, roots = _builds(store, keep_builds)
    traces, ages = store.traces.all(), store.traces.entries()
    if running:
        kept = _reach(store, roots | _outputs(traces))
        traces = {}
    else:
        kept = _reach(store, roots)
        traces = {
            key: trace
            for key, trace in traces.items()
            if key in ages and key not in roots and not kept.manifests & set(trace.outputs.values())
        }
    artifacts = _doomed(store.artifacts.manifests, kept.manifests | roots, before)
    objects = _doomed(store.blobs, kept.objects.keys() | roots, before)
    size = sum(artifacts.values()) + sum(objects.values()) + sum(ages[key].size for key in traces)
    return Pruned(True, len(running), before, tuple(gone), tuple(traces), tuple(artifacts), tuple(objects), size)


def _builds(store: Store, keep: int) -> tuple[list[str], set[str]]:
    """Digests of the builds that go, and every digest that the others and the pins mention."""
    builds, pinned = store.builds.list(), set(store.builds.pins().values())
    kept = [build for build in builds if build.promoted or build.champion or build.digest in pinned]
    kept += [build for build in builds if build not in kept][: max(keep, 0)]
    roots = pinned | {build.digest for build in kept}
    roots |= {digest for build in kept for digest in digests_in(build.report)}
    return [build.digest for build in builds if build not in kept], roots


def _outputs(traces: dict[str, Trace]) -> set[str]:
    return {digest for trace in traces.values() for digest in trace.outputs.values()}


def _reach(store: Store, roots: set[str]) -> Reached:
    reached = walk(store.artifacts.manifests, roots)
    if reached.bad:
        raise InputError(
            "A manifest that is needed is damaged, so what it needs is unknown; nothing was removed",
            where=store.url,
            got=sorted(reached.bad)[0],
            fix="run the build that made it again, then prune",
        )
    return reached


def _doomed(blobs: Blobs, kept: set[str], before: float) -> dict[str, int]:
    """Sizes of the objects that nothing keeps and that are older than `before`."""
    return {digest: entry.size for digest, entry in blobs.list() if digest not in kept and entry.modified < before}


def _remove(store: Store, result: Pruned) -> None:
    """Referring things first, so that an interrupted prune leaves no trace without its outputs."""
    for build in result.builds:
        store.builds.remove(build)
    with ThreadPoolExecutor(1 if store.folder.root else THREADS) as pool:
        list(pool.map(store.traces.remove, result.traces))
        for blobs, digests in ((store.artifacts.manifests, result.artifacts), (store.blobs, result.objects)):
            list(pool.map(partial(_remove_old, blobs, result.before), digests))


def _remove_old(blobs: Blobs, before: float, digest: str) -> None:
    """Remove an object unless it was stored again since it was chosen."""
    entry = blobs.folder.info(blobs.path(digest))
    if entry is not None and entry.modified < before:
        blobs.delete(digest)


def _tidy(store: Store) -> None:
    """Delete what the dead left behind."""
    now = time.time()
    store.folder.sweep(now - LEFTOVERS)
    store.leases.tidy(now - LEFTOVERS)
    for entry in list(store.folder.scan("quarantine")):
        if entry.modified < now - QUARANTINE:
            store.folder.remove(entry.path)
