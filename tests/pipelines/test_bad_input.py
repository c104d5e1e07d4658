"""Every mistake a user can make is one error that says what to do, exit code 2, and costs nothing that was stored."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from builds import write_recipe, write_text
from checkpoints import edit_tensors
from crashes import COMPUTE, Bench, Moment, check_whole
from safetensors.torch import load_file

from pipelines import training
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
        ("distill={text: '{folder}/evaluate.jsonl'}", ["evaluation text must be held out", "8 document(s) in both"]),
        ("distill={text: '{folder}/mixed.jsonl'}", ["training_text", "1 document(s) in both", "another text"]),
        ("distill={method: autorond}", ["distill.method", "'discquant'", "did you mean 'autoround'"]),
        ("distill={scope: stream}", ["needs the whole model", "distill.scope", "autoround, adaquant"]),
        (
            "distill={method: autoround, scope: whole}",
            ["do not go together", "`outputs` term", "`scope: {kind: blocks}`"],
        ),
        (
            "text.calibrate_windows=1000",
            ["too little text", "node recoded", "0 windows of 32", "at least 7; for all that is asked 102"],
        ),
    ],
)
def test_a_recipe_that_cannot_work(refused: Callable[..., str], folder: Path, assignment: str, says: list[str]) -> None:
    """`mixed.jsonl` has one document of the evaluation text between others."""
    lines = (
        write_text(folder / "mixed.jsonl", 4, 3).read_text() + (folder / "evaluate.jsonl").read_text().split("\n")[2]
    )
    (folder / "mixed.jsonl").write_text(lines)
    told = refused(assignment.replace("{folder}", str(folder)))
    assert [part for part in says if part not in told] == [], told
    assert "to do: " in told


def test_a_training_that_does_not_fit_is_refused_in_bytes_before_anything_runs(
    refused: Callable[..., str], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "available_bytes", lambda device: 1_000_000)
    told = refused()
    assert "does not fit in memory" in told and "node distilled" in told and "1000000 bytes available" in told
    wanted = int(re.search(r"wanted: (\d+) bytes", told)[1])
    assert 1_000_000 < wanted < 100_000_000 and "scope: stream" in told
    assert main(["plan", str(folder / "recipe.yaml")]) == 2
    assert f"wanted: {wanted} bytes" in capsys.readouterr().err
    monkeypatch.setattr(training, "available_bytes", lambda device: wanted - 1)
    one_block = ["--set", "distill.method=autoround", "--set", "distill.scope=stream"]
    assert main(["plan", str(folder / "recipe.yaml"), *one_block]) == 0, "a block fits where the whole does not"
    capsys.readouterr()


def test_too_little_text_is_said_before_anything_runs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BITSMITH_HOME", str(tmp_path / "state"))
    assert main(["plan", str(folder / "recipe.yaml"), "--set", "distill.tokens=100000"]) == 0
    told = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("distilled: "))
    found = re.search(r"trains on ([\d,]+) tokens, but there are ([\d,]+) tokens .* is used ([\d.]+) times", told)
    assert found is not None, told
    asked, there = (int(found[i].replace(",", "")) for i in (1, 2))
    assert asked == 99_968 and there % 32 == 0 and float(found[3]) == pytest.approx(asked / there, abs=0.05)


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
    write_recipe(folder, distill=None)
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


def test_a_loss_that_is_not_finite_found_in_a_task(bench: Bench, folder: Path) -> None:
    wild = {"tokens": 256, "batch": 2, "held_out": 6, "rates": {"scales": 1e30}, "schedule": {"warmup": 0}}
    write_recipe(folder, distill=wild)
    attempt = bench.run()
    check_clean(attempt.code, attempt.stderr, "training diverged", "the best so far was", "lower `rates`")
    assert re.search(r"where: step \d+, learning rates scales \d\.?\d*e\+\d\d\n", attempt.stderr)
    assert "note: distilled: trains on " in attempt.stderr, "said before the work begins"
    write_recipe(folder)
    again = bench.run()
    assert again.code == 0 and len(again.begun) < len(attempt.begun), "nothing that was computed before is lost"


def test_learning_rates_that_make_it_worse_keep_the_input_and_the_report_says_so(bench: Bench, folder: Path) -> None:
    wild = {"tokens": 256, "batch": 2, "held_out": 6, "check_every": 1, "rates": {"codes": 3.0, "scales": 0.9}}
    wild["recode"] = {"windows": 500, "passes": 2}
    write_recipe(folder, distill=wild)
    attempt, report = bench.run(), bench.report()
    assert attempt.code == 0 and report.distilled is not None
    assert report.distilled.step_kept == 0 and report.distilled.after == report.distilled.before
    assert "distilled: training kept its input" in " ".join(report.notes)
    assert [note.split(":")[0] for note in report.notes if "the curvature is of" in note] == ["recoded"]
    assert "note: distilled: training kept its input" in " ".join(attempt.stdout.split())
