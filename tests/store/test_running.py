"""What a store says of builds under way: their counts while they live, and that they died."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from store.open import Store
from store.running import Running

DIES = """
import os, sys, time
from store.open import Store
from store.running import Running

store = Store(sys.argv[1])
with store.running("demo") as lease:
    name = lease.rpartition("/")[2]
    store.under_way.write(Running(name, "demo", 22, 1.0, 2.0, "here", os.getpid(), node="candidates"))
    print("written", flush=True)
    time.sleep(600)
"""


def test_a_build_is_listed_while_it_says_so(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    assert store.under_way.list() == ()
    with store.running("demo") as lease:
        told = Running(lease.rpartition("/")[2], "demo", 22, time.time(), time.time(), "here", 7, done=3, total=9)
        store.under_way.write(told)
        store.under_way.write(replace(told, done=4, rate=0.5, eta=10.0))
        assert Store(tmp_path / "store").under_way.list() == (replace(told, done=4, rate=0.5, eta=10.0),)
        store.under_way.remove(told.id)
    assert store.under_way.list() == ()


def test_a_killed_build_is_known_to_be_dead_at_once(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", DIES, str(tmp_path / "store")], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"written\n"
    store = Store(tmp_path / "store")
    assert [(each.alive, each.pid) for each in store.under_way.list()] == [(True, process.pid)]
    process.kill()
    process.wait()
    process.stdout.close()
    assert [(each.alive, each.node) for each in store.under_way.list()] == [(False, "candidates")]


def test_what_another_version_or_a_power_cut_left_is_not_listed(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for name, data in (("a", b""), ("b", b"[]"), ("c", b'{"id": "c", "colour": 1}'), ("d", b'{"id": "d"}')):
        store.folder.replace(f"running/{name}.json", data)
    assert store.under_way.list() == ()
