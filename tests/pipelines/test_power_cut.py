"""A power cut in the middle of a build: whatever was not synced is gone, torn or zeroed, and the result is the same."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from builds import open_build, run_build

from pipelines.drive import Built
from pipelines.items import Item
from pipelines.run import Runner
from store import batch, disk, local
from store.open import Store

Tear = Callable[[Path], object]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Built]:
    folder = tmp_path_factory.mktemp("undisturbed") / "build"
    return folder, run_build(open_build(folder))


class Synced:
    """Which inodes have been synced, whatever they are called now."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inodes: set[int] = set()
        for module in (batch, local):
            monkeypatch.setattr(module, "sync", self.sync)

    def sync(self, paths: Sequence[Path]) -> None:
        todo = list(paths)
        disk.sync(todo)
        self.inodes |= {path.stat().st_ino for path in todo if path.exists()}


def empty(path: Path) -> None:
    path.write_bytes(b"")


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def cut(store: Path, to: Path, synced: set[int], tears: Sequence[Tear], rng: random.Random) -> int:
    """What a disk has of a store when the power goes; how many files lost something."""
    lost = 0
    for path in sorted(p for p in store.rglob("*") if p.is_file()):
        copy = to / path.relative_to(store)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        if path.stat().st_ino not in synced and rng.random() < 0.7:
            rng.choice(tears)(copy)
            lost += 1
    return lost


@pytest.mark.parametrize(
    ("item", "tears"), [(40, [Path.unlink, empty, halve]), (75, [zero]), (70, [Path.unlink, empty, halve, zero])]
)
def test_a_power_cut_costs_time_and_nothing_else(
    item: int,
    tears: Sequence[Tear],
    undisturbed: tuple[Path, Built],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The cut comes at an item when nothing of its batch has been synced."""
    synced, rng, lost, count = Synced(monkeypatch), random.Random(item), 0, 0
    real, place, after = Runner._run, tmp_path / "first" / "state" / "store", tmp_path / "after" / "state" / "store"

    def run(self: Runner, each: Item, progress: object = None) -> dict[str, str]:
        nonlocal lost, count
        count += 1
        if count == item:
            lost = cut(place, after, synced.inodes, tears, rng)
            raise KeyboardInterrupt
        return real(self, each, progress)  # type: ignore[arg-type]

    shutil.copytree(undisturbed[0], tmp_path / "first", ignore=shutil.ignore_patterns("state"))
    monkeypatch.setattr(batch, "SECONDS", 1000.0)
    monkeypatch.setattr(Runner, "_run", run)
    with pytest.raises(KeyboardInterrupt):
        run_build(open_build(tmp_path / "first"))
    monkeypatch.undo()
    assert lost > 5
    shutil.copytree(undisturbed[0], tmp_path / "after", ignore=shutil.ignore_patterns("state"), dirs_exist_ok=True)
    again = run_build(open_build(tmp_path / "after"))
    assert again.outputs["packed"] == undisturbed[1].outputs["packed"]
    assert sum(row.units_cached for row in again.rows) > 2
    assert not Store(after).artifacts.missing(again.outputs["packed"]["packed"])
