"""The command a user types, ended at chosen moments; run as a program, this file is that command under watch.

    python tests/support/crashes.py LOG run RECIPE ...

is `bitsmith run RECIPE ...` that appends a line to LOG whenever it begins to compute an item, to finish a build, or to
log it to MLflow. A line is one write to a file opened for appending, so what was begun is known however the run ended.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.services import ServiceState
from schemas.report import Report
from store.fsck import fsck
from store.open import Store

ROOT = Path(__file__).resolve().parents[2]
MAIN, COMPUTE, FINISH, LOG = "main", "compute", "finish", "log"
Act = Callable[[subprocess.Popen[bytes]], None]
POLL = 0.01
"""Seconds between two looks at the log of a run."""


@dataclass(frozen=True)
class Moment:
    """`delay` seconds after the process was started, or after its log has the `nth` line that starts with `event`."""

    delay: float
    event: str = ""
    nth: int = 1

    def come(self, log: str) -> bool:
        """Whether the event has happened, or can happen no more because all items are computed."""
        computed = self.event == COMPUTE and f"\n{FINISH}" in log
        return not self.event or computed or log.count(f"\n{self.event}") >= self.nth

    def __str__(self) -> str:
        what = f"{self.event} {self.nth}" if self.event else "start"
        return f"{what} + {self.delay:.2f} s"


def moments(rng: random.Random, kills: int) -> Iterator[Moment]:
    """A few while the process starts, most while it computes, the last while it exports and logs the build."""
    finishing = max(2, kills // 5)
    for number in range(kills - finishing):
        if number % 5 == 4:
            yield Moment(rng.uniform(0.05, 2.0))
        else:
            yield Moment(rng.uniform(0, 0.3), COMPUTE, rng.randint(1, 10))
    for number in range(finishing):
        yield Moment(rng.uniform(0, 0.7), (FINISH, LOG)[number % 2])


@dataclass(frozen=True)
class Attempt:
    """One run: when it was to be ended, its exit code, what it began to compute, and what it said."""

    moment: Moment | None
    code: int
    begun: tuple[str, ...]
    """Keys, in order."""
    present: frozenset[str]
    """Keys whose traces were in the store before the run."""
    stdout: str
    stderr: str

    @property
    def again(self) -> set[str]:
        """What was computed although its result was in the store."""
        return set(self.begun) & self.present


@dataclass(frozen=True)
class Bench:
    """A place of its own (state, store, exported builds) to run one recipe in, over shared servers."""

    folder: Path
    recipe: Path
    services: ServiceState

    @property
    def store(self) -> Store:
        """A fresh look at the store."""
        return Store(self.folder / "store")

    @property
    def json(self) -> Path:
        """Where a finished run writes its report."""
        return self.folder / "report.json"

    def report(self) -> Report:
        """What the last finished run wrote."""
        return Report.model_validate_json(self.json.read_text())

    def exported(self) -> dict[str, str]:
        """sha256 of every file below the exported builds, by path."""
        files = sorted(p for p in (self.folder / "builds").rglob("*") if p.is_file())
        return {str(p.relative_to(self.folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    def run(self, moment: Moment | None = None, act: Act = subprocess.Popen.kill) -> Attempt:
        """Run the command; end it (or do something else) at a moment, unless it ends before."""
        self.folder.mkdir(parents=True, exist_ok=True)
        log, out, err = (self.folder / f"run.{name}" for name in ("log", "out", "err"))
        log.write_text("\n")
        present = frozenset(self.store.traces.all())
        with out.open("w") as stdout, err.open("w") as stderr:
            process = subprocess.Popen(self._command(log), env=self._environment(), stdout=stdout, stderr=stderr)
            try:
                if moment is not None:
                    _wait(process, moment, log.read_text)
                    act(process)
                code = process.wait(timeout=600)
            finally:
                process.kill()
                process.wait()
        lines = [line.split() for line in log.read_text().splitlines()]
        begun = tuple(line[1] for line in lines if line and line[0] == COMPUTE)
        return Attempt(moment, code, begun, present, out.read_text(), err.read_text())

    def _command(self, log: Path) -> list[str]:
        places = ["--store", str(self.folder / "store"), "--tracking", str(self.services.tracking_uri)]
        return [sys.executable, __file__, str(log), "run", str(self.recipe), *places, "--json", str(self.json)]

    def _environment(self) -> dict[str, str]:
        # Without bytecode on disk a start takes three times as long, and kills would hit nothing but imports.
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        mine = {"BITSMITH_HOME": str(self.folder), "PREFECT_API_URL": str(self.services.prefect_api_url)}
        return {**kept, **mine, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


def _wait(process: subprocess.Popen[bytes], moment: Moment, log: Callable[[], str]) -> None:
    while not moment.come(log()) and process.poll() is None:
        time.sleep(POLL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=moment.delay)


def torture(bench: Bench, rng: random.Random, kills: int) -> list[Attempt]:
    """Run, kill -9, look at what is left, run again; at last, a run that nobody disturbs."""
    attempts = []
    for moment in moments(rng, kills):
        attempts.append(bench.run(moment))
        assert attempts[-1].code in (0, -signal.SIGKILL), attempts[-1].stderr[-3000:]
        check_whole(bench.store)
    attempts.append(bench.run())
    assert attempts[-1].code == 0, attempts[-1].stderr[-3000:]
    check_whole(bench.store)
    return attempts


def check_whole(store: Store) -> None:
    """Everything that has a name in the store is what its name says, and every trace leads to something whole."""
    if store.folder.info("bitsmith.json") is not None:
        report = fsck(store, repair=False)
        assert report.sound and not report.conflicts and not report.quarantined, report


def deterministic(store: Store) -> dict[str, tuple[str, dict[str, str]]]:
    """Step and outputs of every trace, but for the outputs of `verify`: those hold measured speed."""
    traces = store.traces.all()
    return {
        key: (str(t.document["step"]), {} if t.document["step"] == "steps.verify.run" else t.outputs)
        for key, t in traces.items()
    }


def main() -> None:
    """`bitsmith`, watched."""
    path, sys.argv = sys.argv[1], ["bitsmith", *sys.argv[2:]]
    file = os.open(path, os.O_WRONLY | os.O_APPEND)

    def watched(function: Callable[..., Any], says: Callable[..., str]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            os.write(file, f"{says(*arguments)}\n".encode())
            return function(*arguments, **named)

        return call

    from pipelines import cli, finish, run

    run.Runner._run = watched(run.Runner._run, lambda _, item, *rest: f"{COMPUTE} {item.key}")  # type: ignore[method-assign]
    vars(finish)["log_build"] = watched(vars(finish)["log_build"], lambda *rest: LOG)
    cli.main = watched(cli.main, lambda *rest: MAIN)
    finish.finish = watched(finish.finish, lambda *rest: FINISH)
    sys.exit(cli.main())


if __name__ == "__main__":
    main()
