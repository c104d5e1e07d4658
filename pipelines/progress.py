"""Progress on a terminal: one line per node that moves in place; plain lines elsewhere."""

from __future__ import annotations

import sys
import time

from pipelines.run import Progress

PLAIN_EVERY_SECONDS = 10.0


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
