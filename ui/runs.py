"""Builds that were started from the page, and other commands that it runs: always the command line, as a child.

What the command line refuses, the page refuses: there is one set of rules.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from schemas.errors import InputError

MOST_TEXT = 1_000_000
"""Bytes of a recipe, as for the command line."""
TAIL = 6_000
"""Characters of a log that a page shows."""
PATIENCE = 60.0

_TERMINAL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass
class Started:
    """One build; it runs on when the page ends."""

    id: str
    folder: Path
    child: subprocess.Popen[bytes]
    begun: float = field(default_factory=time.time)

    @property
    def code(self) -> int | None:
        """Exit code; None while it runs."""
        return self.child.poll()

    @property
    def log(self) -> str:
        """The end of what it printed, as a terminal would show it: carriage returns overwrite."""
        text = _TERMINAL.sub("", (self.folder / "log").read_bytes()[-TAIL:].decode("utf-8", "replace"))
        return "\n".join(line.rpartition("\r")[2] for line in text.rstrip().split("\n"))


class Runs:
    """Builds by id. `state` is the folder that the command line keeps its state in as well."""

    def __init__(self, state: Path, store: str) -> None:
        self._state, self._store = state, store
        self._started: dict[str, Started] = {}
        self._lock = threading.Lock()

    def start(self, recipe: str) -> Started:
        """Run a recipe, given as YAML."""
        if not recipe.strip() or len(recipe.encode()) > MOST_TEXT:
            raise InputError("not a recipe", got=f"{len(recipe)} characters", wanted="some YAML, at most 1 MB")
        run = uuid.uuid4().hex[:12]
        folder = self._state / "ui" / "runs" / run
        folder.mkdir(parents=True)
        (folder / "recipe.yaml").write_text(recipe, "utf-8")
        with (folder / "log").open("wb") as log:
            command = self._command("run", str(folder / "recipe.yaml"))
            child = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=self._environment(),
                start_new_session=True,
            )  # fmt: skip
        with self._lock:
            self._started[run] = Started(run, folder, child)
        return self._started[run]

    def newest_first(self) -> list[Started]:
        """What this page has started, newest first."""
        with self._lock:
            return sorted(self._started.values(), key=lambda each: -each.begun)

    def stop(self, run: str) -> None:
        """Interrupt a build; what it has finished stays in the store."""
        started = self._started.get(run)
        if started is None:
            raise InputError("no such run", got=run)
        if started.code is None:
            started.child.send_signal(signal.SIGINT)

    def command(self, *arguments: str) -> str:
        """Run a short command; what it printed. InputError with its message if it failed."""
        done = subprocess.run(
            self._command(*arguments), capture_output=True, text=True, env=self._environment(), timeout=PATIENCE,
            check=False,
        )  # fmt: skip
        if done.returncode:
            raise InputError(done.stderr.strip().removeprefix("error: ") or f"exit code {done.returncode}")
        return done.stdout.strip()

    def _command(self, name: str, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "pipelines.cli", name, *arguments, "--store", self._store]

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "BITSMITH_HOME": str(self._state), "NO_COLOR": "1"}
