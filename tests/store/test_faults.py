"""Remote stores that fail: half of all calls, for good, or for a reason that only a user can mend."""

from __future__ import annotations

import errno
import os
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
import torch
from flaky import Flaky
from stores import open_store, put_trace, trace_of

from schemas.errors import InputError
from store import remote, retry, verified
from store.artifacts import Artifacts
from store.blobs import Blobs
from store.cache import Cache
from store.errors import Missing
from store.open import Store
from store.remote import RemoteFolder
from store.retry import attempt
from store.traces import Traces


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (retry, verified):
        monkeypatch.setattr(module, "FIRST_PAUSE", 0.0)


@pytest.mark.parametrize("seed", range(4))
def test_half_of_the_calls_may_fail(seed: int, tmp_path: Path) -> None:
    flaky = Flaky(seed)
    folder = RemoteFolder(flaky, f"/{uuid.uuid4().hex}", "flaky://", tries=30)
    folder._answered = True
    artifacts, traces = Artifacts(folder, Cache(tmp_path)), Traces(folder)
    saved = {}
    for number in range(10):
        digest = artifacts.save({"n": number}, {"w": torch.full((4000,), number)})
        saved[trace_of(number, {"o": digest}).key] = digest
        trace = trace_of(number, {"o": digest})
        assert traces.put(trace.key, trace.document, trace.outputs, trace.facts) == trace
    assert {key: trace.outputs["o"] for key, trace in traces.get_many(saved).items()} == saved
    assert artifacts.missing(saved.values()) == set()
    fresh = Artifacts(folder, Cache(tmp_path / "other"))
    for number, digest in enumerate(saved.values()):
        assert torch.equal(fresh.load(digest).tensors["w"], torch.full((4000,), number))
    assert [*folder.scan("quarantine")] == [] and len(flaky.faults) > 50
    assert any("torn" in fault for fault in flaky.faults) and any("after" in fault for fault in flaky.faults)


def test_a_claim_whose_answer_was_lost_is_still_ours() -> None:
    folder = RemoteFolder(Flaky(), f"/{uuid.uuid4().hex}", "flaky://", tries=30)
    folder._answered = True
    for number in range(20):
        assert folder.claim(f"{number}", os.urandom(8)) and not folder.claim(f"{number}", os.urandom(8))


def test_a_store_that_never_answers_is_an_input_error() -> None:
    def refuse() -> None:
        raise ConnectionRefusedError("nobody there")

    with pytest.raises(InputError, match="does not answer") as caught:
        attempt(refuse, "s3://bucket/store")
    assert caught.value.where == "s3://bucket/store" and "nobody there" in caught.value.got


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "full"),
        (OSError(errno.EROFS, "Read-only file system"), "cannot be written"),
        (PermissionError("Access Denied"), "cannot be written"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory"), "not a folder"),
    ],
)
def test_what_a_user_must_mend_is_told_at_once(error: OSError, says: str) -> None:
    calls = []

    def fail() -> None:
        calls.append(1)
        raise error

    with pytest.raises(InputError, match=says):
        attempt(fail, "s3://bucket/store")
    assert calls == [1]


def test_our_own_mistakes_are_not_retried() -> None:
    calls = []

    def fail() -> None:
        calls.append(1)
        raise TypeError("a bug")

    with pytest.raises(TypeError):
        attempt(fail, "anywhere")
    assert calls == [1]


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="not a folder") as caught:
        Store(tmp_path / "file" / "store").check_writable()
    assert str(tmp_path / "file" / "store") in str(caught.value)


def test_addresses_that_cannot_be_opened() -> None:
    with pytest.raises(InputError, match="cannot be opened"):
        Store("nonsense://somewhere")


def test_s3_that_is_not_there(s3: dict[str, Any]) -> None:
    gone = {**s3, "client_kwargs": {**s3["client_kwargs"], "endpoint_url": "http://127.0.0.1:9"}}
    with pytest.raises(InputError, match="does not answer"):
        Store("s3://bitsmith/x", options=gone).check_writable()
    with pytest.raises(InputError, match="does not exist"):
        Store("s3://no-such-bucket/x", options=s3).check_writable()


def test_another_layout_is_refused(tmp_path: Path) -> None:
    store = open_store("local", tmp_path)
    from store.records import encode

    store.folder.replace("bitsmith.json", encode({"version": 2}))
    with pytest.raises(InputError, match="another version"):
        store.check_writable()


def test_a_multipart_upload_that_breaks_leaves_nothing(
    s3: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store("s3", tmp_path, s3)
    files = store.folder._fs  # type: ignore[attr-defined]
    call, parts = files._call_s3, []

    async def breaking(method: str, *args: Any, **kwargs: Any) -> Any:
        if method == "upload_part":
            parts.append(kwargs["PartNumber"])
            if kwargs["PartNumber"] == 2:
                raise ValueError("the upload breaks")
        return await call(method, *args, **kwargs)

    monkeypatch.setattr(remote, "PART", 5 << 20)
    data = os.urandom(12 << 20)
    with monkeypatch.context() as broken, pytest.raises(ValueError, match="breaks"):
        broken.setattr(files, "_call_s3", breaking)
        store.blobs.put(data)
    assert 2 in parts and [*store.blobs.list()] == [] and files.list_multipart_uploads("bitsmith") == []
    digest = store.blobs.put(data)
    assert not store.folder.place(store.folder.stage(data), store.blobs.path(digest))
    assert store.blobs.get(digest) == data


def test_uploads_of_the_dead_are_aborted(s3: dict[str, Any], tmp_path: Path) -> None:
    store = open_store("s3", tmp_path, s3)
    folder: Any = store.folder
    bucket, key = folder._at("objects/ab/cd").split("/", 1)
    folder._fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key)
    assert folder.sweep(older_than=0.0) == 0 and len(folder._fs.list_multipart_uploads(bucket)) == 1
    assert folder.sweep(older_than=time.time() + 60) == 1 and folder._fs.list_multipart_uploads(bucket) == []


def test_the_cache_is_bounded_verified_and_optional(tmp_path: Path) -> None:
    store = open_store("memory", tmp_path)
    cache = Cache(tmp_path / "small", limit=300_000, grace=0.0)
    blobs = Blobs(store.folder, "objects", cache)
    digests = [blobs.put(os.urandom(100_000)) for _ in range(6)]
    for digest in digests:
        assert len(blobs.get(digest)) == 100_000
        assert sum(p.stat().st_size for p in cache.root.rglob("*") if p.is_file()) <= 300_000
    path = blobs.local_path(digests[-1])
    path.chmod(0o644)
    path.write_bytes(b"rot" * 1000)
    assert len(blobs.get(digests[-1])) == 100_000
    blobs.folder.remove(blobs.path(digests[0]))
    with pytest.raises(Missing):
        blobs.local_path(digests[0])
    (tmp_path / "file").write_text("")
    cache.root = tmp_path / "file"  # a cache that cannot be written is no reason to fail
    assert put_trace(store, trace_of(1, {})) and len(blobs.get(digests[-1])) == 100_000
