"""What the processes do that share a store in tests; importable, since spawned processes import their target."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stores import put_trace, trace_of

from store.leases import Leases
from store.open import Store


def until(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    """Wait for something that must happen."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def build(store: Store, name: str, numbers: int, log: Path) -> None:
    """Compute every key that nobody else has or is at; a line in the log per computation."""
    with store.running(name), store.batch():
        for number in range(numbers):
            key = trace_of(number, {}).key
            with store.leases.turn(key, lambda key=key: store.traces.get(key)) as found:  # type: ignore[misc]
                if found is None:
                    scratch = log.with_suffix(f".{number}")
                    scratch.write_bytes(b"%d" % number * 20_000)
                    digest = store.artifacts.save({"number": number}, files={"f": scratch}, scratch=log.parent)
                    put_trace(store, trace_of(number, {"o": digest}))
                    with log.open("a") as lines:
                        lines.write(f"{number} {name}\n")


def hold_and_hang(url: str, ready: Any) -> None:
    """Take a lease and keep it until killed."""
    Leases(Store(url).folder).acquire("work")
    ready.set()
    time.sleep(600)
