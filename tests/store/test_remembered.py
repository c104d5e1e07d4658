"""Remembered digests: used when nothing changed, never when anything might have."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from checkpoints import edit_tensors, write_checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.calibrate import ModelSource
from schemas.errors import InputError
from store.models import SourceModel, open_model
from store.sources import remembered
from store.sources.remembered import Remembered, is_settled, write_whole
from store.sources.tensor_bytes import TensorBytes

Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of tensors as they are hashed; files count as settled at once."""
    names: list[str] = []
    original = TensorBytes._hash

    def counting(self: TensorBytes, name: str) -> str:
        names.append(name)
        return original(self, name)

    monkeypatch.setattr(TensorBytes, "_hash", counting)
    monkeypatch.setattr(remembered, "SETTLED_SECONDS", -1.0)
    return names


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "m", shards=2)


def opened(folder: Path, cache: Path | None) -> SourceModel:
    return open_model(ModelSource(step="model", source=str(folder)), cache)


def test_second_run_hashes_nothing(folder: Path, tmp_path: Path, hashed: list[str]) -> None:
    first = opened(folder, tmp_path / "cache").digest
    assert sorted(hashed) == sorted(opened(folder, None).shapes)
    hashed.clear()
    again = opened(folder, tmp_path / "cache")
    assert again.digest == first and again.view([Q]).digest and hashed == []
    assert again.tensors[Q] is not None and hashed == []


def test_views_add_up_in_the_same_record(folder: Path, tmp_path: Path, hashed: list[str]) -> None:
    cache = tmp_path / "cache"
    assert opened(folder, cache).view([Q]).digest
    assert hashed == [Q]
    assert opened(folder, cache).digest
    assert hashed.count(Q) == 1 and len(hashed) == len(opened(folder, cache).shapes)


def test_without_a_cache_nothing_is_remembered(folder: Path, hashed: list[str]) -> None:
    assert opened(folder, None).digest == opened(folder, None).digest
    assert hashed.count(Q) == 2


def test_a_changed_weight_is_noticed_though_size_and_mtime_are_put_back(
    folder: Path, tmp_path: Path, hashed: list[str]
) -> None:
    model = opened(folder, tmp_path / "cache")
    before, path = model.digest, folder / model.shards.spans[Q].shard
    stat = path.stat()
    with path.open("r+b") as file:  # one bit, in place: same inode, same size
        file.seek(model.shards.spans[Q].start)
        byte = file.read(1)[0]
        file.seek(model.shards.spans[Q].start)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size and path.stat().st_mtime_ns == stat.st_mtime_ns
    assert opened(folder, tmp_path / "cache").digest != before


def test_a_replaced_file_is_noticed(folder: Path, tmp_path: Path, hashed: list[str]) -> None:
    model = opened(folder, tmp_path / "cache")
    before, path = model.digest, folder / model.shards.spans[Q].shard
    edit_tensors(path, {Q: -model.tensors[Q]})
    assert opened(folder, tmp_path / "cache").digest != before


def test_a_moved_folder_is_hashed_again_and_is_the_same_model(folder: Path, tmp_path: Path, hashed: list[str]) -> None:
    before = opened(folder, tmp_path / "cache").digest
    hashed.clear()
    folder.rename(tmp_path / "elsewhere")
    assert opened(tmp_path / "elsewhere", tmp_path / "cache").digest == before
    assert Q in hashed


def test_fresh_files_are_not_remembered(folder: Path, tmp_path: Path) -> None:
    """A write within the clock's grain after hashing would not show in the file's times."""
    assert opened(folder, tmp_path / "cache").digest
    assert not (tmp_path / "cache" / "digests").exists()


def test_settled_is_two_seconds_after_the_last_change() -> None:
    version = {"file": {"mtime_ns": 10 * 10**9, "ctime_ns": 11 * 10**9}}
    assert not is_settled(version, 12.9)
    assert is_settled(version, 13.0)
    assert not is_settled(version, 5.0)  # a clock that runs behind the file system's
    assert not is_settled({"file": None}, 99.0)
    assert is_settled({"file": {"tag": "abc"}}, 0.0)


def test_every_corruption_of_a_record_means_hashing_again(folder: Path, tmp_path: Path, hashed: list[str]) -> None:
    before = opened(folder, tmp_path / "cache").digest
    for record in (tmp_path / "cache" / "digests").iterdir():
        document = json.loads(record.read_text())
        document["digests"][Q] = "0" * 64
        record.write_text(json.dumps(document))
    hashed.clear()
    assert opened(folder, tmp_path / "cache").digest == before
    assert Q in hashed
    hashed.clear()
    assert opened(folder, tmp_path / "cache").digest == before and hashed == []  # and was mended


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(position=st.integers(0, 10**6), byte=st.integers(0, 255), cut=st.booleans())
def test_a_record_is_exactly_what_was_written_or_nothing(tmp_path: Path, position: int, byte: int, cut: bool) -> None:
    memory, version = Remembered(tmp_path), {"size": 1, "header": "h", "file": {"path": "/x"}}
    digests = {"a": "0" * 64, "b": "f" * 64}
    shutil.rmtree(tmp_path)
    memory.save(version, digests)
    (record,) = tmp_path.iterdir()
    raw = bytearray(record.read_bytes())
    raw[position % len(raw)] = byte
    record.write_bytes(raw[: position % len(raw)] if cut else raw)
    assert memory.load(version) in ({}, digests)


def test_records_are_for_one_version_only(tmp_path: Path) -> None:
    memory, version = Remembered(tmp_path), {"size": 1, "header": "h", "file": {"path": "/x"}}
    memory.save(version, {"a": "0" * 64})
    (record,) = tmp_path.iterdir()
    other = {**version, "size": 2}
    shutil.copy(record, memory._path(other))
    assert memory.load(version) and memory.load(other) == {}


def test_writes_are_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="cannot write into the cache") as error:
        write_whole(tmp_path / "a" / "b", b"data")
    assert error.value.got == "No space left on device"
    assert list((tmp_path / "a").iterdir()) == []


def test_a_file_that_changes_while_it_is_hashed_is_an_error(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, original = opened(folder, tmp_path / "cache"), TensorBytes._hash

    def meddling(self: TensorBytes, name: str) -> str:
        digest = original(self, name)
        os.utime(folder / self.shards.spans[name].shard, ns=(1, 1))
        return digest

    monkeypatch.setattr(TensorBytes, "_hash", meddling)
    with pytest.raises(InputError, match="the model changed during the run"):
        assert model.view([Q]).digest
