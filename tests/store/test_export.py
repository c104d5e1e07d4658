"""What an export leaves beside its folder: nothing, whoever was killed before."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from store.export import export
from store.open import Store


def test_what_a_killed_export_left_goes_and_what_a_living_one_prepares_stays(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    store.check_writable()
    source = tmp_path / "a.txt"
    source.write_text("a")
    digest = store.artifacts.save(files={"a.txt": source})
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    target = tmp_path / "builds" / "demo"
    dead, alive = (target.parent / f".demo.{socket.gethostname()}.{pid}.0" for pid in (ended.pid, os.getpid()))
    for folder in (dead, alive):
        folder.mkdir(parents=True)
        (folder / "half").write_text("x")
    export(store.artifacts, digest, target)
    assert (target / "a.txt").read_text() == "a"
    assert not dead.exists() and (alive / "half").exists()


def test_a_folder_that_holds_something_is_not_replaced(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    store.check_writable()
    digest = store.artifacts.save(meta={})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(Exception, match="not empty"):
        export(store.artifacts, digest, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".out")] == []
