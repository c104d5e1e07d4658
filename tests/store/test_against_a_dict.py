"""The store against the simplest model of itself, a dictionary; and one flipped bit against all that is stored."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule
from stores import flip, forget_copies, open_store, put_trace, trace_of

from store.digest import sha256
from store.errors import Corrupt, Missing
from store.fsck import fsck
from store.open import Store

CONTENT = st.binary(max_size=64) | st.binary(min_size=1, max_size=8).map(lambda seed: seed * 200_000)


class Model(RuleBasedStateMachine):
    """put, damage, delete, read, trace, batches in any order: the store answers like the dictionary."""

    kind = "local"
    digests: Bundle[str] = Bundle("digests")
    s3: dict[str, Any] | None = None

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.store = open_store(self.kind, self.folder, self.s3)
        self.objects: dict[str, bytes] = {}
        self.damaged: set[str] = set()
        self.traces: dict[int, dict[str, str]] = {}

    @rule(target=digests, content=CONTENT)
    def put(self, content: bytes) -> str:
        digest = self.store.blobs.put(content)
        assert digest == sha256(content)
        if digest not in self.damaged:
            self.objects[digest] = content
        return digest

    @rule(target=digests, contents=st.lists(CONTENT, max_size=4))
    def put_in_a_batch(self, contents: list[bytes]) -> Any:
        with self.store.batch():
            digests = [self.put(content) for content in contents]
            for digest in digests:
                self.get(digest)
        return multiple(*digests)

    @rule(digest=digests)
    def get(self, digest: str) -> None:
        if digest in self.damaged:
            with pytest.raises(Corrupt):
                self.store.blobs.get(digest)
            self.damaged.discard(digest)
            self.objects.pop(digest, None)
        elif digest in self.objects:
            assert self.store.blobs.get(digest) == self.objects[digest]
        else:
            with pytest.raises(Missing):
                self.store.blobs.get(digest)

    @rule(digest=digests, start=st.integers(0, 70), length=st.integers(0, 70))
    def get_range(self, digest: str, start: int, length: int) -> None:
        content = self.objects.get(digest)
        if content is not None and digest not in self.damaged and start + length <= len(content):
            assert self.store.blobs.get_range(digest, start, start + length) == content[start : start + length]

    @rule(digest=digests, bit=st.integers(0, 10_000))
    def damage(self, digest: str, bit: int) -> None:
        if self.objects.get(digest) and digest not in self.damaged:
            flip(self.store, self.store.blobs.path(digest), bit)
            self.damaged.add(digest)

    @rule(digest=consumes(digests))
    def delete(self, digest: str) -> None:
        self.store.blobs.delete(digest)
        self.objects.pop(digest, None)
        self.damaged.discard(digest)

    @rule(number=st.integers(0, 5), output=digests)
    def trace(self, number: int, output: str) -> None:
        self.traces.setdefault(number, {"o": output})

        def whole(outputs: dict[str, str]) -> bool:
            return True

        self.store.traces._whole = whole
        assert put_trace(self.store, trace_of(number, {"o": output})).outputs == self.traces[number]

    @rule()
    def reopen(self) -> None:
        self.store = Store(*self.store._arguments[:1], options=self.store._arguments[1], cache=self.folder / "cache")

    @invariant()
    def same(self) -> None:
        if hasattr(self, "store"):
            forget_copies(self.store)
            assert {digest for digest, _ in self.store.blobs.list()} == set(self.objects)
            assert self.store.blobs.sizes(self.objects) == {d: len(c) for d, c in self.objects.items()}
            found = self.store.traces.get_many(trace_of(number, {}).key for number in range(6))
            assert {t.document["spec"]["number"]: t.outputs for t in found.values()} == self.traces

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)


FEW = settings(max_examples=8, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck))


class LocalModel(Model):
    kind = "local"


class MemoryModel(Model):
    kind = "memory"


class DirModel(Model):
    kind = "dir"


TestLocal, TestMemory, TestDir = LocalModel.TestCase, MemoryModel.TestCase, DirModel.TestCase
TestLocal.settings = TestMemory.settings = TestDir.settings = FEW


def test_s3_against_a_dict(s3: dict[str, Any]) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    class S3Model(Model):
        kind = "s3"

    S3Model.s3 = s3
    run_state_machine_as_test(S3Model, settings=settings(FEW, max_examples=2, stateful_step_count=10))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with one of everything. Each example works on a copy of it."""
    folder = tmp_path_factory.mktemp("whole")
    store = open_store("local", folder)
    (folder / "f").write_bytes(os.urandom(3000))
    part = store.artifacts.save({"part": 1}, {"w": torch.arange(4000), "small": torch.arange(10)})
    digest = store.artifacts.save({"a": [1.5, "b"]}, {"v": torch.arange(3)}, {"p": part}, {"f": folder / "f"})
    put_trace(store, trace_of(1, {"o": digest, "p": part}))
    store.builds.save("b" * 64, {"report": digest})
    store.builds.promote("b" * 64)
    store.builds.pin("champion", "b" * 64)
    return store


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_flipped_bit_is_found_and_named(whole: Store, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(whole.url, f"{folder}/store")
        store = Store(f"{folder}/store")
        kinds = ("objects", "artifacts", "traces", "builds", "promoted", "pins")
        paths = sorted(entry.path for kind in kinds for entry in store.folder.scan(kind))
        assert len(paths) == 8
        path = data.draw(st.sampled_from(paths))
        flip(store, path, data.draw(st.integers(0, 8 * 40_000)))
        assert fsck(store, repair=False).bad == (path,)
        digest = path.split("/", 1)[1].replace("/", "")
        if path.startswith(("objects", "artifacts")):
            with pytest.raises(Corrupt):
                (store.blobs if path.startswith("objects") else store.artifacts.manifests).get(digest)
        elif path.startswith("traces"):
            assert store.traces.get(digest) is None
        elif path.startswith("builds"):
            assert store.builds.list() == ()
        else:
            return
        assert fsck(store).bad == () and fsck(store).quarantined == 1
