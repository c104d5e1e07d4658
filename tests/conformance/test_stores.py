"""What every backend must do, the same battery for each kind of store."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from stores import KINDS, flip, forget_copies, open_store, put_trace, trace_of

from schemas.errors import InputError
from steps.step import Output
from store.errors import Corrupt, Missing
from store.fsck import fsck
from store.open import Store
from store.prune import prune

ABSENT = "0" * 64
DTYPES = ("float32", "bfloat16", "float16", "float64", "int8", "uint8", "int32", "int64", "bool", "float8_e4m3fn")


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    s3 = request.getfixturevalue("s3") if request.param == "s3" else None
    return open_store(request.param, tmp_path, s3)


@pytest.mark.parametrize("size", [0, 1, 70_000, 9 << 20])
def test_an_object_is_named_by_its_content(store: Store, size: int) -> None:
    data = os.urandom(size)
    digest = store.blobs.put(data)
    assert digest == hashlib.sha256(data).hexdigest()
    forget_copies(store)
    assert store.blobs.get(digest) == data
    assert store.blobs.size(digest) == size and store.blobs.has(digest)
    assert store.blobs.local_path(digest).read_bytes() == data
    assert store.blobs.get_range(digest, size // 3, size // 2) == data[size // 3 : size // 2]


def test_a_file_is_stored_copied_or_moved(store: Store, tmp_path: Path) -> None:
    path, data = tmp_path / "weights", os.urandom(9 << 20)
    path.write_bytes(data)
    digest = store.blobs.put_file(path)
    path.write_bytes(data[::-1])  # the store has a copy of what was there
    other = tmp_path / "scratch" / "weights"
    other.parent.mkdir()
    other.write_bytes(b"mine" + data)
    saved = store.artifacts.save(files={"a": path, "b": other, "c": other}, scratch=other.parent)
    assert path.read_bytes() == data[::-1] and path.stat().st_nlink == 1
    shutil.rmtree(other.parent)
    assert store.blobs.local_path(digest).read_bytes() == store.blobs.get(digest) == data
    files = store.artifacts.load(saved).files
    assert [files[name].read_bytes() for name in "abc"] == [data[::-1], b"mine" + data, b"mine" + data]


def test_the_same_content_is_one_object(store: Store) -> None:
    digests = {store.blobs.put(b"same"), store.blobs.put(bytearray(b"same")), store.blobs.put(memoryview(b"same"))}
    assert [digest for digest, _ in store.blobs.list()] == [*digests]
    assert store.blobs.sizes([*digests, ABSENT]) == dict.fromkeys(digests, 4)


def test_absent_objects_are_missing(store: Store, tmp_path: Path) -> None:
    blobs = store.blobs
    for read in (blobs.get, blobs.size, blobs.local_path, lambda d: blobs.get_range(d, 0, 4)):
        with pytest.raises(Missing) as caught:
            read(ABSENT)
        assert caught.value.digest == ABSENT
    assert not blobs.has(ABSENT) and blobs.sizes([ABSENT]) == {}
    blobs.delete(ABSENT)
    with pytest.raises(ValueError):
        blobs.get("../../etc/passwd")


@pytest.mark.parametrize("read", ["get", "local_path"])
def test_a_flipped_bit_is_found_quarantined_and_healed(store: Store, read: str) -> None:
    data = os.urandom(100_000)
    digest = store.blobs.put(data)
    flip(store, store.blobs.path(digest), 123_456)
    with pytest.raises(Corrupt):
        getattr(store.blobs, read)(digest)
    with pytest.raises(Missing):
        getattr(store.blobs, read)(digest)
    assert len([*store.folder.scan("quarantine")]) == 1
    assert store.blobs.put(data) == digest and store.blobs.get(digest) == data


def test_artifacts_come_back_as_they_were_saved(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("{}")
    tensors = {name: torch.randn(7, 300).mul(9).to(getattr(torch, name)) for name in DTYPES}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 4), "strided": torch.randn(64, 96).T}
    part = Output({"k": [1, (2.5, None)]}, {"w": torch.arange(12_000)})
    digest = store.artifacts.save({"a": {"b": 1}}, tensors, {"x/1": part}, {"sub/config.json": path})
    forget_copies(store)
    loaded = store.artifacts.load(digest)
    assert loaded.digest == digest and loaded.meta == {"a": {"b": 1}}
    assert set(loaded.tensors) == set(tensors)
    for name, tensor in tensors.items():
        assert loaded.tensors[name].dtype is tensor.dtype and torch.equal(loaded.tensors[name], tensor)
    assert loaded.children["x/1"].meta == {"k": [1, [2.5, None]]}
    assert torch.equal(loaded.children["x/1"].tensors["w"], torch.arange(12_000))
    assert loaded.files["sub/config.json"].read_text() == "{}"
    assert store.artifacts.save_value(loaded) == digest
    again = dict(reversed(tensors.items()))
    children = {"x/1": loaded.children.digests["x/1"]}
    assert store.artifacts.save({"a": {"b": 1}}, again, children, {"sub/config.json": path}) == digest


def test_missing_parts_are_found_without_reading_contents(store: Store) -> None:
    part = store.artifacts.save(tensors={"w": torch.arange(5000)})
    whole = store.artifacts.save(tensors={"v": torch.arange(6000)}, children={"part": part})
    w, v = (store.artifacts.load(d).tensors.rows[n].sha256 for d, n in ((part, "w"), (whole, "v")))
    assert store.artifacts.missing(whole) == set()
    store.blobs.delete(w)
    assert store.artifacts.missing(whole) == {w} and store.artifacts.missing(whole, deep=False) == set()
    store.artifacts.discard(part)
    store.blobs.delete(v)
    assert store.artifacts.missing([whole, ABSENT]) == {part, v, ABSENT}
    with pytest.raises(Missing):
        store.artifacts.load(whole).children["part"].meta  # noqa: B018


def test_traces_keep_the_first_outputs_while_they_are_whole(store: Store) -> None:
    first, second = store.artifacts.save({"n": 1}), store.artifacts.save({"n": 2})
    trace = trace_of(1, {"candidates": first})
    assert put_trace(store, trace) == trace and store.traces.get(trace.key) == trace
    other = trace_of(1, {"candidates": second})
    assert put_trace(store, other).outputs == {"candidates": first}
    assert store.traces.get(trace.key) == trace
    assert fsck(store).conflicts == (trace.key,)
    store.artifacts.discard(first)
    assert put_trace(store, other) == other == store.traces.get(trace.key)


def test_a_damaged_trace_is_a_miss(store: Store) -> None:
    traces = [trace_of(number, {"candidates": ABSENT}) for number in range(6)]
    store.traces.put_many(traces)
    flip(store, store.traces.path(traces[2].key), 1000)
    moved = store.folder.read(store.traces.path(traces[3].key))
    store.folder.replace(store.traces.path(traces[4].key), moved)  # sound, but another key's
    found = store.traces.get_many(trace.key for trace in traces)
    assert found == {trace.key: trace for trace in traces if trace not in (traces[2], traces[4])}
    assert store.traces.get(traces[2].key) is None
    assert put_trace(store, traces[2]) == store.traces.get(traces[2].key)


def test_traces_refuse_keys_that_are_not_of_their_document(store: Store) -> None:
    trace = trace_of(1, {})
    with pytest.raises(ValueError):
        store.traces.put(ABSENT, trace.document, {})
    with pytest.raises(ValueError):
        store.traces.put(trace.key, trace.document, {"plan": "latest"})


def test_nearest_is_the_most_similar_of_the_same_step(store: Store) -> None:
    store.traces.put_many([trace_of(number, {}) for number in (1, 2, 11)] + [trace_of(3, {}, "pack")])
    wanted = trace_of(10, {}).document  # as many bits as number 2
    nearest = store.traces.nearest(wanted)
    assert nearest is not None and nearest.document["spec"]["number"] == 2
    assert store.traces.nearest({**wanted, "step": "verify"}) is None


def test_one_racer_claims_a_name(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        for number in range(5):
            barrier = threading.Barrier(8)

            def race(racer: int, barrier: threading.Barrier = barrier, number: int = number) -> bool:
                barrier.wait()
                return store.folder.claim(f"claims/{number}", b"%d" % racer)

            won = list(pool.map(race, range(8)))
            assert won.count(True) == 1
            assert store.folder.read(f"claims/{number}") == b"%d" % won.index(True)


def test_a_lease_has_one_holder(store: Store) -> None:
    name = "a" * 64
    assert store.leases.acquire(name) and not store.leases.acquire(name)
    assert store.leases.holders()[name]["pid"] == os.getpid()
    with pytest.raises(InputError, match="at work"), store.leases.hold(name, timeout=0.0):
        pass
    store.leases.release(name)
    assert store.leases.holders() == {}
    with store.leases.turn(name, lambda: None) as found:
        assert found is None and not store.leases.acquire(name)
    with store.leases.turn(name, lambda: "done") as found:
        assert found == "done" and store.leases.acquire(name)
    store.leases.release(name)


def test_objects_are_never_seen_half_written(store: Store) -> None:
    data = [os.urandom(6 << 20) for _ in range(4)]
    sizes: set[int] = set()
    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(lambda: [store.blobs.put(each) for each in data])
        while not written.done():
            sizes |= {entry.size for _, entry in store.blobs.list()}
            time.sleep(0.002)
    assert len(written.result()) == 4 and sizes <= {6 << 20}


def test_builds_and_pins(store: Store) -> None:
    reports: list[dict[str, Any]] = [{"recipe": "demo", "number": number} for number in range(3)]
    names = [f"{number}{'a' * 63}" for number in range(3)]
    for name, report in zip(names, reports, strict=True):
        store.builds.save(name, report)
        time.sleep(0.02)
    store.builds.promote(names[0])
    store.builds.pin("champion", names[1])
    assert store.builds.load(names[2]) == reports[2] and store.builds.load(ABSENT) is None
    assert {b.digest: b.promoted for b in store.builds.list()} == dict(zip(names, (True, False, False), strict=True))
    assert store.builds.find("1a").digest == names[1] and store.builds.pins() == {"champion": names[1]}
    with pytest.raises(InputError, match="No such build"):
        store.builds.find("f")
    store.builds.promote(names[0], False)
    store.builds.unpin("champion")
    flip(store, f"builds/{names[1]}.json", 777)
    assert [b.promoted for b in store.builds.list()] == [False, False] and store.builds.pins() == {}


def test_export_is_a_folder_of_named_files(store: Store, tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(os.urandom(2 << 20))
    (tmp_path / "c").write_text("{}")
    files = {"model.safetensors": tmp_path / "w", "sub/config.json": tmp_path / "c"}
    digest = store.artifacts.save(files=files)
    out = store.artifacts.export(digest, tmp_path / "out")
    assert {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()} == {
        name: path.read_bytes() for name, path in files.items()
    }
    with pytest.raises(InputError, match="not empty"):
        store.artifacts.export(digest, out)
    with pytest.raises(InputError, match="leads out"):
        store.artifacts.export(store.artifacts.save(files={"../x": tmp_path / "c"}), tmp_path / "evil")
    assert {p.name for p in tmp_path.iterdir()} <= {"out", "w", "c", "store", "dir", "cache"}


def test_fsck_and_prune(store: Store) -> None:
    kept, dropped = (store.artifacts.save({"n": n}, {"w": torch.full((5000,), n)}) for n in (1, 2))
    store.traces.put_many([trace_of(1, {"o": kept}), trace_of(2, {"o": dropped, "scratch": ABSENT})])
    store.builds.save("a" * 64, {"nodes": [{"outputs": {"o": kept}}]})
    report = fsck(store)
    assert report.sound and report.files == 7
    with store.running("a build"):
        assert prune(store).traces == () and prune(store, dry_run=True).running == 1
    plan = prune(store, dry_run=True)
    assert plan.traces == (trace_of(2, {}).key,) and plan.artifacts == (dropped,) and plan.bytes > 20_000
    assert fsck(store) == report
    assert prune(store).objects == plan.objects and len(plan.objects) == 1
    assert store.artifacts.missing(kept) == set() and store.traces.get(trace_of(1, {}).key) is not None
    assert prune(store, keep_builds=0).artifacts == (kept,)
    assert fsck(store).files == 0


def test_fsck_names_what_is_bad(store: Store) -> None:
    digest = store.artifacts.save({}, {"w": torch.arange(5000), "v": torch.arange(5001)}, {"part": Output({"x": 1})})
    artifact = store.artifacts.load(digest)
    part, blob = artifact.children.digests["part"], artifact.tensors.rows["w"].sha256
    traces = [put_trace(store, trace_of(n, {"o": digest})) for n in range(2)]
    bad = [store.blobs.path(blob), store.artifacts.manifests.path(part), store.traces.path(traces[0].key)]
    for path in bad:
        flip(store, path, 99)
    for repair in (False, True):
        report = fsck(store, repair=repair)
        assert report.bad == tuple(sorted(bad)) and not report.sound
        assert report.incomplete == (digest,) and report.dangling == (traces[1].key,)
    assert report.quarantined == 3 and fsck(store).bad == ()


def test_only_stores_are_pruned_or_checked(store: Store) -> None:
    store.folder.remove("bitsmith.json")
    for action in (fsck, prune):
        with pytest.raises(InputError, match="not a Bitsmith store"):
            action(store)
    store.check_writable()
    assert fsck(store).sound
