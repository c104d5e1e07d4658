"""Every mistake a user can make is one error that says what to do, exit code 2, and costs nothing that was stored."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from builds import write_recipe
from checkpoints import edit_tensors
from crashes import COMPUTE, Bench, Moment, check_whole
from safetensors.torch import load_file

from pipelines.cli import main
from pipelines.services import ServiceState
from store.open import Store

pytestmark = [pytest.mark.timeout(900), pytest.mark.xdist_group("services")]
WEIGHT = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a recipe with its model and texts. Read only."""
    return write_recipe(tmp_path_factory.mktemp("made") / "recipe").parent


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy to spoil; its recipe names the copy."""
    shutil.copytree(made, tmp_path / "recipe")
    return write_recipe(tmp_path / "recipe").parent


@pytest.fixture
def refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """`bitsmith run` in this process on the recipe; the error it ends with. Nothing is computed or stored."""
    monkeypatch.setenv("BITSMITH_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)

    def run(*assignments: str, store: Path | None = None) -> str:
        words = ["run", str(folder / "recipe.yaml"), *(w for a in assignments for w in ("--set", a))]
        assert main([*words, *(["--store", str(store)] if store else [])]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and err.count("error: ") == 1 and "Traceback" not in err
        assert not [*(store or tmp_path / "state" / "store").glob("traces/*/*")]
        return err

    return run


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("formts=[int4-g64]", ["formts", "did you mean 'formats'?"]),
        ("rounding={solver: {kind: feedbak}}", ["rounding.solver", "unknown kind 'feedbak'", "'feedback'"]),
        ("budget.bits_per_weight=1.0", ["no plan meets the budget", "at least 2.5", "at most 8.2", "smaller formats"]),
        ("budget.bits_per_weight=12", ["above what the largest plan takes", "2.5", "8.2", "lower the budget"]),
        ("formats=[int4-g128]", ["int4-g128", "self_attn.q_proj", "64 weights per row", "formats that fit"]),
        ("formats=[int3-g32-asym, int4-g64]", ["int3-g32-asym", "zero points", "use int3-g32"]),
        ("pins=[{units: 'nothing.*', formats: [int4-g64]}]", ["matches no unit", "pins[0]", "layers.0.self_attn.qkv"]),
        ("text.evaluate={folder}/calibrate.jsonl", ["held out", "12 document(s) in both", "another text"]),
    ],
)
def test_a_recipe_that_cannot_work(refused: Callable[..., str], folder: Path, assignment: str, says: list[str]) -> None:
    told = refused(assignment.replace("{folder}", str(folder)))
    assert [part for part in says if part not in told] == [], told
    assert "to do: " in told


def holds(folder: Path, name: str) -> Path:
    """The shard with a tensor."""
    return next(path for path in (folder / "model").glob("*.safetensors") if name in load_file(path))


def lose_a_shard(folder: Path) -> None:
    holds(folder, WEIGHT).unlink()


def reshape(folder: Path) -> None:
    edit_tensors(holds(folder, WEIGHT), {WEIGHT: torch.zeros(64, 64, dtype=torch.bfloat16)})


def pickle(folder: Path) -> None:
    for path in (*(folder / "model").glob("*.safetensors"), folder / "model" / "model.safetensors.index.json"):
        path.unlink()
    torch.save({}, folder / "model" / "pytorch_model.bin")


def pickle_in_disguise(folder: Path) -> None:
    torch.save({}, holds(folder, WEIGHT))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lose_a_shard, ["1 of 2 shards are missing", "-of-00002.safetensors", "finish the download"]),
        (reshape, [WEIGHT, "[64, 64]", "[64, 128]"]),
        (pickle, ["pickle checkpoints are not read", "pytorch_model.bin", "save_pretrained"]),
        (pickle_in_disguise, ["damaged safetensors file", "-of-00002.safetensors"]),
    ],
)
def test_a_checkpoint_that_cannot_be_read(
    refused: Callable[..., str], folder: Path, spoil: Callable[[Path], None], says: list[str]
) -> None:
    spoil(folder)
    told = refused()
    assert [part for part in says if part not in told] == [], told
    assert "to do: " in told


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, 100 MiB: just enough for what a build asks for."""
    path = tmp_path / "disk"
    path.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", str(path)]
    if (done := subprocess.run(mount, capture_output=True, text=True, check=False)).returncode:
        pytest.skip(f"cannot mount a small disk here: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_store_that_cannot_be_written(refused: Callable[..., str], disk: Path) -> None:
    Store(disk / "store").check_writable()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    told = refused(store=disk / "store")
    assert "cannot be written" in told and str(disk / "store") in told and "check permissions" in told


def test_a_disk_that_is_too_small_is_told_before_any_work(refused: Callable[..., str], disk: Path) -> None:
    (disk / "other").write_bytes(bytes(60 << 20))
    told = refused(store=disk / "store")
    assert "not enough room in the store" in told and "bytes free" in told and "choose another place" in told


def test_a_folder_that_is_no_store(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    assert "not a Bitsmith store" in refused(store=tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    assert "not a folder" in refused(store=tmp_path / "mine" / "thesis.txt")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert "does not exist" in refused(store=tmp_path / "link")


@pytest.fixture
def bench(folder: Path, services: ServiceState, tmp_path: Path) -> Bench:
    return Bench(tmp_path / "state", folder / "recipe.yaml", services)


def check_clean(code: int, stderr: str, *says: str) -> None:
    """Exit code 2; besides progress, one error and not a line of what Prefect has to say about it."""
    assert code == 2, stderr[-3000:]
    assert stderr.count("error: ") == 1 and "Traceback" not in stderr and "ERROR" not in stderr, stderr[-3000:]
    told = stderr[stderr.index("error: ") :]
    assert [part for part in says if part not in told] == [], told


def test_a_weight_that_is_no_number_found_in_a_task(bench: Bench, folder: Path) -> None:
    weights = load_file(holds(folder, WEIGHT))[WEIGHT].clone()
    weights[3, 5] = float("nan")
    edit_tensors(holds(folder, WEIGHT), {WEIGHT: weights})
    attempt = bench.run()
    check_clean(attempt.code, attempt.stderr, WEIGHT, "NaN")
    assert bench.store.traces.entries(), "what was computed before is kept"
    check_whole(bench.store)


def test_a_text_that_is_too_short_found_in_a_task(bench: Bench, folder: Path) -> None:
    (folder / "calibrate.jsonl").write_text('{"text": "a"}\n')
    attempt = bench.run()
    check_clean(attempt.code, attempt.stderr, "too short for one window", "1 tokens", "32 tokens", "give more text")


def test_a_disk_that_becomes_full(bench: Bench, disk: Path) -> None:
    bench.folder.mkdir()
    (disk / "store").mkdir()
    (bench.folder / "store").symlink_to(disk / "store")

    def fill(process: object) -> None:
        with (disk / "other").open("wb", buffering=0) as file:
            try:
                while file.write(bytes(1 << 20)):
                    pass
            except OSError:
                return

    attempt = bench.run(Moment(0, COMPUTE, 6), fill)
    check_clean(attempt.code, attempt.stderr, "The store is full", str(bench.folder / "store"), "free some space")
    (disk / "other").unlink()
    kept = set(bench.store.traces.all())
    assert kept and kept <= set(attempt.begun)
    check_whole(bench.store)
