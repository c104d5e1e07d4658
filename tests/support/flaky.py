"""A remote file system that fails half of the time."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import fsspec

CALLS = {"cat_file", "pipe_file", "put_file", "info", "find", "mv", "rm_file", "cat"}


class Flaky:
    """A file system half of whose calls fail, before or after they did their work, or deliver half of a body."""

    def __init__(self, seed: int = 0) -> None:
        self._inner, self._random = fsspec.filesystem("memory"), random.Random(seed)
        self.protocol = self._inner.protocol
        self.faults: list[str] = []

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._inner, name)
        return self._faulty(name, call) if name in CALLS else call

    def _faulty(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            fault = self._random.choice(["", "", "before", "after", "torn"][: 5 if name == "cat_file" else 4])
            self.faults += [f"{name} {fault}"] if fault else []
            if fault == "before":
                raise ConnectionResetError("injected")
            result = call(*args, **kwargs)
            if fault == "after":
                raise TimeoutError("injected")
            return result[: len(result) // 2] if fault == "torn" else result

        return run
