"""Several processes on one store: each key computed once, the work of the dead taken over, nothing pruned in use."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import time
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from store_workers import build, hold_and_hang, until
from stores import BUCKET, flip, open_store, put_trace, trace_of

from schemas.errors import InputError
from store.expiring import ExpiringLeases
from store.fsck import fsck
from store.open import Store
from store.prune import prune

SPAWN = multiprocessing.get_context("spawn")


def _start(target: Any, *arguments: Any) -> SpawnProcess:
    process = SPAWN.Process(target=target, args=arguments)
    process.start()
    return process


def _compute_together(store: Store, processes: int, numbers: int, folder: Path) -> list[int]:
    logs = [folder / f"log{worker}" for worker in range(processes)]
    started = [_start(build, store, str(w), numbers, log) for w, log in enumerate(logs)]
    for process in started:
        process.join(120)
        assert process.exitcode == 0
    return [int(line.split()[0]) for log in logs if log.exists() for line in log.read_text().splitlines()]


def test_four_processes_compute_each_of_200_keys_once(tmp_path: Path) -> None:
    store = open_store("local", tmp_path)
    computed = _compute_together(store, 4, 200, tmp_path)
    assert sorted(computed) == list(range(200))
    report = fsck(store)
    assert report.sound and report.conflicts == () and report.files == 600
    assert store.leases.holders() == {}


def test_two_processes_compute_each_of_12_keys_once_on_s3(tmp_path: Path, s3: dict[str, Any]) -> None:
    store = open_store("s3", tmp_path, s3)
    computed = _compute_together(store, 2, 12, tmp_path)
    assert sorted(computed) == list(range(12))
    assert fsck(store).sound and store.leases.holders() == {}


def test_a_lease_ends_with_its_holder(tmp_path: Path) -> None:
    store, ready = open_store("local", tmp_path), SPAWN.Event()
    process = _start(hold_and_hang, store.url, ready)
    assert ready.wait(60) and process.pid is not None
    assert not store.leases.acquire("work") and store.leases.holders()["work"]["pid"] == process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with store.leases.hold("work", timeout=5.0):
        assert store.leases.holders()["work"]["pid"] == os.getpid()


def test_expiring_leases_end_when_nobody_refreshes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = open_store("memory", tmp_path).folder
    alive, dead, other = (ExpiringLeases(folder, ttl=0.6) for _ in range(3))
    monkeypatch.setattr(dead, "_start", lambda: None)  # its process is gone: nobody refreshes
    assert alive.acquire("a", {}) and dead.acquire("b", {"pid": 7})
    assert not other.acquire("a", {}) and not other.acquire("b", {})
    assert dict(other.holders("")) == {"a": {}, "b": {"pid": 7}}
    time.sleep(1.0)
    assert not other.acquire("a", {}) and other.acquire("b", {}) and not alive.acquire("b", {})
    dead.release("b")  # too late: it is another's now
    assert set(dict(other.holders(""))) == {"a", "b"} and not alive.acquire("b", {})
    alive.release("a")
    other.release("b")
    assert other.acquire("a", {}) and not dead.acquire("a", {})
    other.release("a")
    other.forget(time.time() + 1)
    assert [*folder.scan("leases")] == []


def test_prune_spares_what_running_builds_need(tmp_path: Path) -> None:
    store = open_store("local", tmp_path)
    old = [put_trace(store, trace_of(n, {"o": store.artifacts.save({"number": n})})) for n in range(40)]
    lost = store.artifacts.save({"nobody": "needs this"}, {"w": torch.arange(4000)})
    logs = [tmp_path / "log0", tmp_path / "log1"]
    builds = [_start(build, store, str(number), 150, log) for number, log in enumerate(logs)]
    until(lambda: any(log.exists() for log in logs))
    rounds = 0
    while any(process.is_alive() for process in builds):
        pruned = prune(store, keep_builds=0)
        assert pruned.running == 0 or pruned.traces == ()
        rounds += pruned.running > 0
        if pruned.running == 0:
            break
    for process in builds:
        process.join(60)
        assert process.exitcode == 0
    assert rounds > 0 and store.artifacts.missing(lost) == {lost}
    computed = [int(line.split()[0]) for log in logs if log.exists() for line in log.read_text().splitlines()]
    assert sorted(computed) == list(range(40, 150))  # nothing old was lost on the way, nothing new computed twice
    assert len(old) == 40 and fsck(store).sound


def test_builds_wait_for_a_prune_and_only_one_prunes(tmp_path: Path) -> None:
    store = open_store("local", tmp_path)
    with store.leases.hold("prune/prune"):
        process = _start(build, store, "late", 1, tmp_path / "log")
        until(lambda: store.leases.holders("builds"))
        time.sleep(0.3)
        assert store.traces.all() == {}
    process.join(60)
    assert len(store.traces.all()) == 1


def test_an_object_stored_again_is_young_again(tmp_path: Path) -> None:
    store = open_store("local", tmp_path)
    small, large = b"small", os.urandom(2 << 20)
    digests = [store.blobs.put(small), store.blobs.put(large)]
    for digest in digests:
        os.utime(tmp_path / "store" / store.blobs.path(digest), (0, 0))
    with store.running("a build"):
        assert set(prune(store, dry_run=True).objects) == set(digests)
        assert [store.blobs.put(small), store.blobs.put(large)] == digests
        assert prune(store).objects == () and store.blobs.sizes(digests).keys() == set(digests)


def test_prune_refuses_when_it_cannot_know_what_is_needed(tmp_path: Path) -> None:
    store = open_store("local", tmp_path)
    part = store.artifacts.save({"part": 1})
    whole = store.artifacts.save(children={"part": part})
    store.builds.pin("keep", whole)
    flip(store, store.artifacts.manifests.path(whole), 40)
    with pytest.raises(InputError, match="damaged"):
        prune(store)
    assert store.artifacts.has(part)


def test_the_store_pickles_as_its_address(tmp_path: Path, s3: dict[str, Any]) -> None:
    for store in (open_store("local", tmp_path), open_store("s3", tmp_path, s3)):
        digest = store.blobs.put(b"x")
        assert pickle.loads(pickle.dumps(store)).blobs.get(digest) == b"x" and (
            BUCKET in store.url or store.cache is None
        )
