"""Writers that are killed, disks that are full, power cuts: nothing half written is ever taken for a result."""

from __future__ import annotations

import errno
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
from store.local import LocalFolder
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
    store.folder.stage(b"what a killed writer leaves")
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


def test_a_batch_has_names_at_once_and_is_synced_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file before its folder; traces, which check themselves, never."""
    store, events = open_store("local", tmp_path), list[Path]()
    real = batches.sync
    monkeypatch.setattr(batches, "sync", lambda paths: (events.extend(chosen := [*paths]), real(chosen))[1])
    monkeypatch.setattr(batches, "FILES", 4)
    with store.batch():
        for number in range(3):
            put_trace(store, trace_of(number, {"o": store.artifacts.save({"n": number})}))
        assert events == [] and fsck(Store(store.url)).files == 6 and len(Store(store.url).traces.all()) == 3
        store.artifacts.save({"n": 3})
        assert len(events) > 4 and not [path for path in events if "traces" in str(path)]
        files = [path for path in events if path.is_file()]
        assert files == events[:4] and {path.parent for path in files} <= set(events[4:])
        store.artifacts.save({"n": 4})
    assert len([path for path in events if path.is_file()]) == 5
    assert [*store.folder.scan("tmp")] == []


def test_what_a_disk_refuses_to_keep_loses_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network disk may say only at the sync that it is full."""
    store = open_store("local", tmp_path)
    kept = store.blobs.put(b"kept")

    def refuse(paths: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(batches, "sync", refuse)
    with pytest.raises(InputError, match="full"), store.batch():
        digest = store.blobs.put(b"refused")
        assert store.blobs.get(digest) == b"refused"
    assert store.blobs.sizes([kept, digest]) == {kept: 4}


def test_a_batch_syncs_what_was_stored_when_an_error_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, synced = open_store("local", tmp_path), set[Path]()
    monkeypatch.setattr(batches, "sync", synced.update)
    with pytest.raises(KeyboardInterrupt), store.batch():
        digest = store.blobs.put(b"complete")
        raise KeyboardInterrupt
    assert store.blobs.local_path(digest) in synced


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
    local = store.folder
    assert isinstance(local, LocalFolder)
    with store.batch(), store.leases.hold("parent"):
        digest = store.blobs.put(b"of the parent")
        child = os.fork()
        if not child:
            mine = store.blobs.put(b"of the child")
            os._exit(0 if store.blobs.has(mine) and not local._batch._files else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert not Store(store.url).leases.acquire("parent") and len(local._batch._files) == 1
    assert store.blobs.get(digest) == b"of the parent"


@pytest.mark.parametrize("bit", range(0, 8 * 160, 101))
def test_every_part_of_a_trace_is_covered_by_its_checksum(tmp_path: Path, bit: int) -> None:
    store = open_store("local", tmp_path)
    trace = put_trace(store, trace_of(1, {"o": "a" * 64}))
    flip(store, store.traces.path(trace.key), bit)
    assert store.traces.get(trace.key) is None
