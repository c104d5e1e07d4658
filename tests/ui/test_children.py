"""The processes that the page starts: the allocator's and the command line's."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from browsers import LISTENS, until
from pages import fill

from schemas.errors import InputError
from ui.explorer import Explorer
from ui.runs import Runs


def test_an_allocator_that_died_is_replaced(tmp_path: Path) -> None:
    build = fill(tmp_path / "store", 1).builds.list()[0].digest
    explorer = Explorer(str(tmp_path / "store"))
    try:
        with pytest.raises(InputError, match="written by another version"):
            explorer.ask("open", build=build)
        child = explorer._child
        assert child is not None
        child.kill()
        child.wait()
        with pytest.raises(InputError, match="No such build"):
            explorer.ask("open", build="0" * 64)
        assert explorer._child is not None and explorer._child.pid != child.pid
    finally:
        explorer.stop()


def test_an_allocator_that_cannot_start_is_an_error_in_time(tmp_path: Path) -> None:
    explorer = Explorer(str(tmp_path / "no store"))
    with pytest.raises(InputError, match="gave no answer"):
        explorer.ask("open", build="0" * 64)
    explorer.stop()


def test_a_recipe_that_is_refused_says_why_in_its_log(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "state", str(tmp_path / "store"))
    started = runs.start("name: x\nbudget: {bytes: 1}\n")
    until(lambda: started.code is not None, 60)
    assert started.code == 2 and "recipe has" in started.log and "formats" in started.log
    assert [run.id for run in runs.newest_first()] == [started.id]
    with pytest.raises(InputError, match="not a recipe"):
        runs.start(" ")
    with pytest.raises(InputError, match="no such run"):
        runs.stop("0")


def test_a_log_is_what_a_terminal_would_show(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "state", str(tmp_path / "store"))
    started = runs.start("name: x")
    until(lambda: started.code is not None, 60)
    (started.folder / "log").write_text("a 1/3\r\x1b[Ka 2/3\r\x1b[Ka 3/3\nb\n")
    assert started.log == "a 3/3\nb"


def test_the_command_line_starts_the_page_alone_and_ends_it(tmp_path: Path) -> None:
    fill(tmp_path / "store", 1)
    command = [sys.executable, "-m", "pipelines.cli", "ui", "--store", str(tmp_path / "store"), "--port", "0"]
    environment = {**os.environ, "BITSMITH_HOME": str(tmp_path / "state")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        assert LISTENS.match(child.stdout.readline())
        child.send_signal(signal.SIGTERM)
        assert child.stdout.read() == ""  # ends when the page, which holds it too, has ended
        child.wait(20)
