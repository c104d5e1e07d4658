"""Models behind URLs (memory, S3 by moto on loopback): what is fetched, and what happens when nothing can be."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch
from checkpoints import write_checkpoint

from schemas.calibrate import ModelSource, TextSource
from schemas.errors import InputError
from store.models import SourceModel, open_model
from store.sources.remote import RemotePlace
from store.texts import read_documents

Q = "model.layers.1.self_attn.q_proj.weight"


def opened(source: str, cache: Path | None = None) -> SourceModel:
    return open_model(ModelSource(step="model", source=source), cache)


@pytest.fixture
def local(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "m", shards=2)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A bucket URL on a moto server on loopback; the environment points boto at it."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("models")
        yield "s3://models"
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def uploaded(local: Path, base: str) -> str:
    """The URL of a copy of the local model."""
    target = f"{base}/{hashlib.sha256(str(local).encode()).hexdigest()[:8]}/m"
    filesystem, root = fsspec.core.url_to_fs(target)
    filesystem.pipe({f"{root}/{path.name}": path.read_bytes() for path in local.iterdir()})
    return target


@pytest.fixture
def url(local: Path) -> str:
    """The URL of a copy of the local model in memory."""
    return uploaded(local, "memory://models")


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """(file, bytes) of every range read from a remote place."""
    reads: list[tuple[str, int]] = []
    original = RemotePlace.read

    def counting(self: RemotePlace, name: str, start: int = 0, stop: int | None = None) -> bytearray:
        raw = original(self, name, start, stop)
        reads.append((name, len(raw)))
        return raw

    monkeypatch.setattr(RemotePlace, "read", counting)
    return reads


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_remote_is_the_same_model(kind: str, local: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = uploaded(local, "memory://models" if kind == "memory" else request.getfixturevalue("s3"))
    there, here = opened(url, tmp_path / "cache"), opened(str(local))
    assert there.digest == here.digest and there.meta == here.meta
    assert there.view([Q]).digest == here.view([Q]).digest
    assert torch.equal(there.tensors[Q], here.tensors[Q])
    assert there.files["tokenizer.json"].read_bytes() == here.files["tokenizer.json"].read_bytes()
    assert there.files["tokenizer.json"].name == "tokenizer.json"


def test_looking_fetches_headers_only(url: str, fetched: list[tuple[str, int]]) -> None:
    model = opened(url)
    begins = {s.shard: min(t.start for t in model.shards.spans.values() if t.shard == s.shard)
              for s in model.shards.spans.values()}  # fmt: skip
    for shard, begin in begins.items():
        assert sum(size for name, size in fetched if name == shard) == 2 * begin
    fetched.clear()
    assert torch.is_tensor(model.tensors[Q])
    assert {size for name, size in fetched if name == model.shards.spans[Q].shard and size > 1024} >= {2048}


def test_with_a_cache_every_tensor_is_transferred_once(
    url: str, tmp_path: Path, fetched: list[tuple[str, int]]
) -> None:
    model = opened(url, tmp_path / "cache")
    assert model.digest
    fetched.clear()
    first = model.tensors[Q]
    assert fetched == []
    (kept,) = (tmp_path / "cache" / "tensors").rglob(model.tensor_digests[Q])
    kept.write_bytes(b"\0" * kept.stat().st_size)  # a flipped copy is not believed, and mended
    assert torch.equal(model.tensors[Q], first) and fetched == [(model.shards.spans[Q].shard, 2048)]
    fetched.clear()
    assert torch.equal(model.tensors[Q], first) and fetched == []


def test_digests_of_s3_are_remembered_by_tag_and_a_new_upload_is_noticed(
    s3: str, local: Path, tmp_path: Path, fetched: list[tuple[str, int]]
) -> None:
    fs, cache, url = fsspec.filesystem("s3", use_listings_cache=False), tmp_path / "cache", uploaded(local, s3)
    before = opened(url, cache)
    digest, shard = before.digest, before.shards.spans[Q].shard
    fetched.clear()
    assert opened(url, cache).digest == digest
    assert max(size for name, size in fetched if name.endswith(".safetensors")) < 5000  # headers
    raw = bytearray((local / shard).read_bytes())
    raw[-1] ^= 1
    fs.pipe_file(f"{url}/{shard}", bytes(raw))
    assert opened(url, cache).digest != digest


def test_a_remote_change_during_the_run_is_an_error(url: str, local: Path) -> None:
    model = opened(url)
    assert model.tensor_digests[Q]
    shard, start = model.shards.spans[Q].shard, model.shards.spans[Q].start
    raw = bytearray((local / shard).read_bytes())
    raw[start] ^= 1
    with fsspec.open(f"{url}/{shard}", "wb") as file:
        file.write(bytes(raw))
    with pytest.raises(InputError, match="the model changed during the run"):
        model.tensors[Q]


def test_texts_come_from_urls_too(s3: str) -> None:
    fs = fsspec.filesystem("s3", use_listings_cache=False)
    fs.pipe({f"{s3[5:]}/t/b.txt": b"two", f"{s3[5:]}/t/deep/a.md": b"three", f"{s3[5:]}/t/a.jsonl": b'{"text": "one"}'})
    folder = read_documents(TextSource(step="text", source=f"{s3}/t/"))
    assert folder.texts == ("two", "three") and folder.names == ("b.txt", "deep/a.md")
    assert read_documents(TextSource(step="text", source=f"{s3}/t/a.jsonl")).texts == ("one",)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nope://a/b", "cannot read"),
        ("memory://no/such/model", "no such file or folder"),
        ("https://huggingface.co/org/name", "unsupported kind of address"),
        ("simplecache::s3://models/x", "unsupported kind of address"),
        ("sftp://user:secret@127.0.0.1:1/x", "cannot read"),
    ],
)
def test_addresses_that_cannot_be_read(source: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        opened(source)
    assert error.value.where and error.value.fix and "secret" not in str(error.value)


def test_missing_bucket_and_unreachable_endpoint_are_quick(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"cannot read|no such file"):
        opened("s3://nobody-has-this/m")
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3fs.S3FileSystem.clear_instance_cache()
    began = time.monotonic()
    with pytest.raises(InputError, match="cannot read"):
        opened("s3://models/m")
    assert time.monotonic() - began < 60
    s3fs.S3FileSystem.clear_instance_cache()
