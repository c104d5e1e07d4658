"""Writers that are killed, disks that are full, power cuts: nothing half written is ever taken for a result."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from stores import flip, open_store, put_trace, trace_of

from schemas.errors import InputError
from store import batch as batches
from store.fsck import fsck
from store.open import Store

WRITER = """
import os, sys
from pathlib import Path
from store.open import Store
from stores import put_trace, trace_of
store = Store(sys.argv[1])
print("ready", flush=True)
with store.batch():
    for number in range(10**6):
        blob = store.blobs.put(os.urandom(300_000 if number % 7 else 9_000_000))
        scratch = Path(sys.argv[2]) / str(number)
        scratch.write_bytes(os.urandom(200_000))
        digest = store.artifacts.save({"number": number, "blob": blob}, files={"f": scratch}, scratch=scratch.parent)
        put_trace(store, trace_of(number, {"o": digest}))
"""


def _kill_a_writer(folder: Path, seconds: float) -> Store:
    """Let a process write for a while and kill it with -9."""
    store = open_store("local", folder)
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    here = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here / 'tests' / 'support'}"}
    command = [sys.executable, "-c", WRITER, store.url, str(scratch)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
        time.sleep(seconds)
        writer.send_signal(signal.SIGKILL)
    return store


def _check_nothing_half_written(store: Store) -> int:
    """Everything that has a name is whole, and every trace leads to whole outputs. Returns the number of traces."""
    report = fsck(store, repair=False)
    assert report.bad == () and report.dangling == () and report.incomplete == ()
    return len(store.traces.all())


def test_a_killed_writer_leaves_only_whole_results(tmp_path: Path) -> None:
    written = 0
    for number in range(3):
        store = _kill_a_writer(tmp_path, 0.2 + 0.4 * number)
        written += _check_nothing_half_written(store)
    assert written > 0
    assert [*store.folder.scan("tmp")] != []
    store.folder.sweep(time.time() + 1)
    assert [*store.folder.scan("tmp")] == [] and store.leases.holders() == {}


@pytest.mark.slow
def test_many_killed_writers(tmp_path: Path) -> None:
    for number in range(60):
        folder = tmp_path / str(number)
        folder.mkdir()
        _check_nothing_half_written(_kill_a_writer(folder, 0.05 + 0.02 * number))
        shutil.rmtree(folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("batched", [False, True])
def test_a_full_disk_is_an_input_error_and_leaves_nothing_half_written(small_disk: Path, batched: bool) -> None:
    store = open_store("local", small_disk)
    data = os.urandom(3 << 20)
    first = store.blobs.put(data)
    with pytest.raises(InputError, match="full") as caught:
        if batched:
            with store.batch():
                store.blobs.put(os.urandom(3 << 20))
                store.blobs.put(os.urandom(3 << 20))
        else:
            store.blobs.put(os.urandom(9 << 20))
    assert str(store.url) in str(caught.value)
    assert [*store.folder.scan("tmp")] == []
    report = fsck(store)
    assert report.sound and report.files == (2 if batched else 1)
    assert store.blobs.get(first) == data
    store.blobs.delete(first)
    assert store.blobs.put(os.urandom(2 << 20))


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes to read-only folders")
def test_a_read_only_folder(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    with pytest.raises(InputError, match="cannot be written"):
        Store(folder / "store").check_writable()


def test_a_read_only_disk(small_disk: Path) -> None:
    store = open_store("local", small_disk)
    digest = store.blobs.put(b"here before")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(InputError, match="cannot be written"):
        store.check_writable()
    with pytest.raises(InputError, match="cannot be written"):
        store.blobs.put(b"new")
    assert store.blobs.get(digest) == b"here before"


def test_nothing_of_a_batch_has_a_name_before_it_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Order of events at a commit: sync contents, name objects, sync folders, and only then name traces."""
    store, events = open_store("local", tmp_path), list[str]()
    sync, name = batches.sync, batches.give_name
    monkeypatch.setattr(batches, "sync", lambda paths: (events.extend(_kind(p, "sync") for p in paths), sync(paths)))
    monkeypatch.setattr(batches, "give_name", lambda t, f: (events.append(_kind(f, "name")), name(t, f))[1])
    with store.batch():
        for number in range(3):
            digest = store.artifacts.save({"n": number})
            put_trace(store, trace_of(number, {"o": digest}))
        assert events == [] and store.traces.get(trace_of(1, {}).key) and store.artifacts.load(digest).meta == {"n": 2}
        assert fsck(Store(store.url)).files == 0  # others see nothing yet
    order = ["sync tmp", "name artifacts", "sync artifacts", "name traces"]
    places = [order.index(event) for event in events if event != "sync root"]
    assert places == sorted(places) and set(places) == {0, 1, 2, 3}
    assert fsck(Store(store.url)).files == 6


def _kind(path: Path, event: str) -> str:
    parts = [part for part in ("tmp", "artifacts", "traces") if f"/store/{part}" in str(path)]
    return f"{event} {parts[0] if parts else 'root'}"


def test_a_lease_released_in_a_batch_outlives_what_is_not_yet_visible(tmp_path: Path) -> None:
    store = open_store("local", tmp_path)
    other = Store(store.url)
    with store.batch():
        with store.leases.hold("a"):
            trace = put_trace(store, trace_of(1, {}))
        assert other.traces.get(trace.key) is None and not other.leases.acquire("a")
        store.flush()
        assert other.traces.get(trace.key) == trace and other.leases.acquire("a")
        other.leases.release("a")
        with store.leases.hold("b"):
            put_trace(store, trace_of(2, {}))
        assert store.leases.acquire("b")  # ours again, at the price of a commit


def test_a_batch_commits_what_was_complete_when_an_error_passes(tmp_path: Path) -> None:
    store = open_store("local", tmp_path)
    with pytest.raises(KeyboardInterrupt), store.batch():
        digest = store.blobs.put(b"complete")
        raise KeyboardInterrupt
    assert Store(store.url).blobs.get(digest) == b"complete"


def test_an_object_torn_by_a_power_cut_is_written_again(tmp_path: Path) -> None:
    store = open_store("local", tmp_path)
    data = os.urandom(5000)
    digest = store.blobs.put(data)
    store.folder.replace(store.blobs.path(digest), b"")
    assert store.blobs.put(data) == digest and store.blobs.get(digest) == data
    trace = put_trace(store, trace_of(1, {}))
    store.folder.replace(store.traces.path(trace.key), b"")
    assert store.traces.get(trace.key) is None and put_trace(store, trace) == store.traces.get(trace.key)


def test_a_forked_child_leaves_the_batch_of_its_parent_alone(tmp_path: Path) -> None:
    store = open_store("local", tmp_path)
    with store.batch(), store.leases.hold("parent"):
        digest = store.blobs.put(b"of the parent")
        child = os.fork()
        if not child:
            mine = store.blobs.put(b"of the child")
            os._exit(0 if store.blobs.has(mine) and not store.blobs.has(digest) else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert not Store(store.url).leases.acquire("parent")
    assert store.blobs.get(digest) == b"of the parent"


@pytest.mark.parametrize("bit", range(0, 8 * 160, 101))
def test_every_part_of_a_trace_is_covered_by_its_checksum(tmp_path: Path, bit: int) -> None:
    store = open_store("local", tmp_path)
    trace = put_trace(store, trace_of(1, {"o": "a" * 64}))
    flip(store, store.traces.path(trace.key), bit)
    assert store.traces.get(trace.key) is None
