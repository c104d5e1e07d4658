"""How far a build is: a line per node that moves in place on a terminal, plain lines elsewhere, a file in the store."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from pipelines.run import Progress
from schemas.errors import InputError
from store.open import Store
from store.running import Running

PLAIN_EVERY_SECONDS = 10.0
WRITE_EVERY_SECONDS = 1.0
"""A page that looks once a second sees every word."""


def reporter() -> Progress:
    """A progress callback that writes to stderr."""
    return _moving if sys.stderr.isatty() else _Plain()


def _moving(node: str, done: int, total: int) -> None:
    width = 24
    filled = width * done // max(total, 1)
    end = "\n" if done >= total else ""
    print(
        f"\r\033[K{node:<32} [{'#' * filled}{'.' * (width - filled)}] {done}/{total}",
        end=end,
        file=sys.stderr,
        flush=True,
    )


class _Plain:
    def __init__(self) -> None:
        self.said = time.monotonic()

    def __call__(self, node: str, done: int, total: int) -> None:
        if done >= total or time.monotonic() - self.said > PLAIN_EVERY_SECONDS:
            self.said = time.monotonic()
            print(f"{node} {done}/{total}", file=sys.stderr, flush=True)


class Watch:
    """Counts the pieces of work of one build over the batches of its nodes; tells the terminal, and at times a file.

    A batch counts from 0: what it says is raised by the pieces of the node that earlier batches have done. A message
    `node: what` comes from inside an item, and stands for the node when that item is all there is to do.
    """

    def __init__(self, first: Running, write: Callable[[Running], None], tell: Progress) -> None:
        self._now, self._write, self._tell = first, write, tell
        self._pieces, self._before, self._ended = 0, 0, set[str]()
        self._begun, self._due = time.monotonic(), float("-inf")
        self._set()

    def begin(self, node: str, pieces: int) -> None:
        """A node has so many pieces to compute."""
        self._pieces, self._before, self._begun = pieces, 0, time.monotonic()
        self._ended.clear()
        self._due = float("-inf")
        self._set(node=node, what="", done=0, total=pieces)

    def __call__(self, node: str, done: int, total: int) -> None:
        """What Runner.execute says within a batch."""
        node, _, what = node.partition(": ")
        if what and self._pieces > 1:
            return
        done, total = (done, total) if what else (self._before + done, self._pieces)
        label = f"{node}: {what}" if what else node
        if done < total or label not in self._ended:  # an item may go over the same blocks several times
            self._tell(label, done, total)
        if done >= total:
            self._ended.add(label)
        self._set(what=what, done=done, total=total)

    def batch_done(self, size: int) -> None:
        """A batch of so many pieces is finished, here or on another machine."""
        self._before += size
        self._set(what="", done=self._before, total=self._pieces)

    def node_done(self) -> None:
        """A node is complete, computed or cached."""
        self._set(nodes_done=self._now.nodes_done + 1)

    def _set(self, **changes: Any) -> None:
        now = replace(self._now, **changes)
        seconds = time.monotonic() - self._begun
        rate = now.done / seconds if now.done and seconds > 0 else None
        self._now = replace(now, rate=rate, eta=(now.total - now.done) / rate if rate else None, updated=time.time())
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + WRITE_EVERY_SECONDS
            self._write(self._now)


@contextmanager
def watch(store: Store, recipe: str, nodes: int, flow_run: str | None) -> Iterator[Watch]:
    """Say that a build runs, so that prune spares what it may need, and how far it is, so that a page can show it.

    What cannot be written is left out: progress fails no build.
    """

    def write(running: Running) -> None:
        with suppress(InputError, OSError):
            store.under_way.write(running)

    with store.running(recipe) as lease:
        build, now = lease.rpartition("/")[2], time.time()
        first = Running(build, recipe, nodes, now, now, socket.gethostname(), os.getpid(), flow_run)
        try:
            yield Watch(first, write, reporter())
        finally:
            with suppress(InputError, OSError):
                store.under_way.remove(build)
