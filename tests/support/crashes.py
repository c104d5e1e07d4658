"""The command a user types, ended at chosen moments; run as a program, this file is that command under watch.

    python tests/support/crashes.py LOG run RECIPE ...

is `bitsmith run RECIPE ...` that appends a line to LOG whenever it begins to compute an item, to assemble the report,
or to log it to MLflow. A line is one write to a file opened for appending, so it is there however the run ended.
Runs that are not ended while they start are forked from a process that has its imports behind it (zygote.py).
"""

from __future__ import annotations

import atexit
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zygote import Child, Zygote

from pipelines.delivery import NOTE
from pipelines.servers import prefect_settings
from pipelines.services import ServiceState
from schemas.report import Report
from store.fsck import fsck
from store.open import Store

ROOT = Path(__file__).resolve().parents[2]
MAIN, COMPUTE, FINISH, LOG = "main", "compute", "finish", "log"
Process = subprocess.Popen[bytes] | Child
Act = Callable[[Process], None]
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
        """sha256 of every file below the exported builds, by path; but for the one that names this folder's recipe."""
        files = sorted(p for p in (self.folder / "builds").rglob("*") if p.is_file() and p.name != NOTE)
        return {str(p.relative_to(self.folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    def run(
        self, moment: Moment | None = None, act: Act = lambda process: process.kill(), fresh: bool = False
    ) -> Attempt:
        """Run the command; end it (or do something else) at a moment, unless it ends before.

        `fresh`: as a new process, as a user would, and so for whatever is to happen while that starts.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        log, out, err = (self.folder / f"run.{name}" for name in ("log", "out", "err"))
        log.write_text("\n")
        for path in (out, err):
            path.write_text("")
        present = frozenset(self.store.traces.all())
        process = self._start(log, out, err, fresh or (moment is not None and moment.event in ("", MAIN)))
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

    def _start(self, log: Path, out: Path, err: Path, fresh: bool) -> Process:
        places = ["--store", str(self.folder / "store"), "--tracking", str(self.services.tracking_uri)]
        words = [str(log), "run", str(self.recipe), *places, "--json", str(self.json)]
        if not fresh:
            return zygote(self.services).start(words, {"BITSMITH_HOME": str(self.folder)}, out, err)
        with out.open("w") as stdout, err.open("w") as stderr:
            command = [sys.executable, __file__, *words]
            environment = environment_of(self.services) | {"BITSMITH_HOME": str(self.folder)}
            return subprocess.Popen(command, env=environment, stdout=stdout, stderr=stderr)


def environment_of(services: ServiceState) -> dict[str, str]:
    """Of a command that uses these services, its place aside."""
    # Without bytecode on disk a start takes three times as long, and kills would hit nothing but imports.
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    prefect = {**prefect_settings(services.folder, services.prefect_api_url), "PREFECT_LOGGING_LEVEL": "WARNING"}
    return {**kept, **prefect, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


def command(services: ServiceState, words: Sequence[str], folder: Path) -> tuple[int, str]:
    """A finished `bitsmith` command in a state folder, forked; its exit code and standard error."""
    log, out, err = (folder / f"forked.{name}" for name in ("log", "out", "err"))
    for path in (log, out, err):
        path.write_text("")
    code = zygote(services).start([str(log), *words], {"BITSMITH_HOME": str(folder)}, out, err).wait(600)
    return code, err.read_text()


_zygotes: dict[str, Zygote] = {}


def zygote(services: ServiceState) -> Zygote:
    """The one of these services, which the environment of its imports names."""
    if services.mark not in _zygotes:
        _zygotes[services.mark] = Zygote(environment_of(services))
        atexit.register(_zygotes[services.mark].close)
    return _zygotes[services.mark]


def _wait(process: Process, moment: Moment, log: Callable[[], str]) -> None:
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


def watched(words: Sequence[str]) -> int:
    """`bitsmith`, of which the first word is the log; its exit code."""
    path, *arguments = words
    file = os.open(path, os.O_WRONLY | os.O_APPEND)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background is deaf to it

    def telling(function: Callable[..., Any], says: Callable[..., str]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            os.write(file, f"{says(*arguments)}\n".encode())
            return function(*arguments, **named)

        return call

    from pipelines import cli, finish, run

    run.Runner._run = telling(run.Runner._run, lambda _, item, *rest: f"{COMPUTE} {item.key}")  # type: ignore[method-assign]
    vars(finish)["log_build"] = telling(vars(finish)["log_build"], lambda *rest: LOG)
    vars(finish)["assemble"] = telling(vars(finish)["assemble"], lambda *rest: FINISH)
    return int(telling(cli.main, lambda *rest: MAIN)(arguments))


if __name__ == "__main__":
    sys.exit(watched(sys.argv[1:]))
