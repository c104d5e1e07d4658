"""An interrupt that a library swallowed ends the command before its next item."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from builds import open_build, run_build

from pipelines.interrupts import check, heeded

SWALLOWED = """
import os, signal, sys
from pipelines import cli, interrupts

def command(options):
    try:
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
        signal.sigtimedwait([], 5)
    except BaseException:
        pass
    interrupts.check()

cli._dispatch = command
sys.exit(cli.main(["plan", "demo"]))
"""


def traces(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if "traces" in path.parts and path.is_file()]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_swallowed_interrupt_comes_back(name: str) -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", SWALLOWED, name], cwd=root, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 130 and "run the same command to go on" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_no_further_item_is_begun(tmp_path: Path) -> None:
    build, before = (
        open_build(tmp_path, distill=None),
        {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)},
    )
    try:
        with pytest.raises(KeyboardInterrupt), heeded():
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            run_build(build)
        check()
        assert not traces(tmp_path)
        run_build(build)
        assert traces(tmp_path)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
