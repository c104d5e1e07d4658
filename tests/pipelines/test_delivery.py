"""What a build hands over when its store or its folder was damaged since: it is made again, or put back, and said."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builds import open_build, places, run_build

from pipelines.build import Build, from_traces
from pipelines.cli import main
from pipelines.drive import Built, drive_and_use
from pipelines.finish import finish
from schemas.report import Report
from store.fsck import fsck
from store.open import Store

SMALL: dict[str, Any] = {"formats": ["int2-g32", "int4-g64"], "distill": None, "budget": {"bits_per_weight": 3.6}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished build. Read only."""
    folder = tmp_path_factory.mktemp("base") / "first"
    build = open_build(folder, **SMALL)
    finish(build, run_build(build), None, 1.0)
    return folder


@pytest.fixture
def copy(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "copy"))


def finished(folder: Path) -> Report:
    """What a flow does with a recipe, without Prefect."""
    build = open_build(folder, **SMALL)

    def use(built: Built) -> Report:
        return finish(build, built, None, 1.0)

    return drive_and_use(build.runner, build.runner.execute, use, lambda row: None)


def weights(store: Store, packed: str) -> Path:
    """The stored file of the packed weights."""
    assert store.folder.root is not None
    return store.folder.root / store.blobs.path(store.artifacts.load(packed).files.rows["model.safetensors"]["digest"])


def manifest(store: Store, digest: str) -> Path:
    assert store.folder.root is not None
    return store.folder.root / store.artifacts.manifests.path(digest)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.unlink()
    path.write_bytes(data)


@pytest.mark.parametrize("spoil", [flip, Path.unlink])
@pytest.mark.parametrize("where", [weights, manifest])
@pytest.mark.parametrize("checked", [False, True])
def test_a_damaged_packed_artifact_is_packed_again(
    copy: Path, where: Callable[[Store, str], Path], spoil: Callable[[Path], None], checked: bool
) -> None:
    store = open_build(copy, **SMALL).runner.store
    before = Report.model_validate(store.builds.list()[0].report)
    spoil(where(store, before.packed.digest))
    if checked:
        assert not fsck(store).sound
    shutil.rmtree(copy / "state" / "builds")
    after = finished(copy)
    assert {row.id: row.units_computed for row in after.nodes if row.units_computed} == {"packed": 1}
    assert after.packed.digest == before.packed.digest
    assert (Path(after.packed.path) / "model.safetensors").is_file() and fsck(store).sound


def known(folder: Path) -> tuple[Build, Report]:
    """The build and its record, the recorded folder being that of this copy."""
    finished(folder)
    build = open_build(folder, **SMALL)
    report = from_traces(build, 0.0)
    assert report is not None and Path(report.packed.path).is_relative_to(folder)
    return build, report


def test_a_cached_build_whose_packed_artifact_is_lost_is_not_reported_as_cached(copy: Path) -> None:
    """The folder is whole, but the store is not: running the recipe again is what `fsck` advises."""
    build, report = known(copy)
    weights(build.runner.store, report.packed.digest).unlink()
    assert from_traces(open_build(copy, **SMALL), 0.0) is None


def test_files_of_a_delivered_folder_that_are_gone_or_changed_are_put_back(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build, report = known(copy)
    folder = Path(report.packed.path)
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "tokenizer.json").unlink()
    (folder / "config.json").write_text("{}")
    (folder / "mine.txt").write_text("mine")
    capsys.readouterr()
    assert from_traces(build, 0.0) is not None
    (line,) = capsys.readouterr().err.splitlines()
    assert str(folder) in line and line.endswith("exported again, missing or changed: config.json, tokenizer.json")
    assert {name: (folder / name).read_bytes() for name in whole} == whole
    assert (folder / "config.json.old").read_text() == "{}" and (folder / "mine.txt").read_text() == "mine"
    assert {path.name for path in folder.iterdir()} - whole.keys() == {"config.json.old", "mine.txt"}
    assert from_traces(build, 0.0) is not None and capsys.readouterr().err == "", "it is whole now"


def test_a_folder_that_is_there_is_mended_by_a_run_that_computes(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, report = known(copy)
    (Path(report.packed.path) / "config.json").unlink()
    capsys.readouterr()
    finished(copy)
    assert (Path(report.packed.path) / "config.json").is_file()
    assert "missing or changed: config.json" in capsys.readouterr().err


def test_a_command_that_meets_damage_says_what_to_do(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build, report = known(copy)
    plan = next(row.outputs["plan"] for row in report.nodes if row.id == "plan")
    flip(manifest(build.runner.store, plan))
    assert main(["plan", str(copy / "recipe.yaml"), "--store", places(copy).store]) == 2
    told = capsys.readouterr().err
    assert plan in told and "to do: run the build's recipe again" in told
