"""Scratch of steps ends with them; what killed processes leave goes by itself; copies go when nobody uses them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.scratch import DAY, Tidied, bury, room, scratch, tidy
from schemas.errors import InputError
from store.open import Store

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from pathlib import Path
from pipelines.scratch import scratch
with scratch(Path(sys.argv[1])) as folder:
    (folder / "spill").write_bytes(bytes(1000))
    print(folder, flush=True)
    time.sleep(600)
"""


def test_scratch_is_empty_and_removed_even_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), scratch(tmp_path / "cache") as folder:
        assert [*folder.iterdir()] == []
        (folder / "x").write_text("x")
        raise KeyError
    assert [*(tmp_path / "cache").iterdir()] == []


def test_no_room_is_said_with_the_folder_and_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no room for a step's scratch") as refused, room(tmp_path):
        Path("/dev/full").write_bytes(b"x")
    assert str(tmp_path) in str(refused.value) and "BITSMITH_HOME" in str(refused.value)
    with pytest.raises(FileNotFoundError), room(tmp_path):
        (tmp_path / "absent").read_bytes()


def test_scratch_of_the_living_stays_and_that_of_the_killed_goes(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        assert holder.stdout is not None
        other = Path(holder.stdout.readline().strip())
        with scratch(tmp_path) as mine:
            assert bury(tmp_path) == Tidied(0, 0) and other.is_dir() and mine.is_dir()
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert bury(tmp_path, dry_run=True) == Tidied(1, 1000) and other.is_dir()
    with scratch(tmp_path) as mine:
        assert [*tmp_path.iterdir()] == [mine]


def write_old(path: Path, age: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(100))
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_prune_takes_copies_that_nobody_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BITSMITH_HOME", str(tmp_path))
    Store(tmp_path / "store").check_writable()
    cache = tmp_path / "cache"
    kept = [
        write_old(cache / "tensors/ab/cd", DAY / 2),
        write_old(cache / "resume/key/a", 2 * DAY),
        write_old(cache / "digests/x.json", 99 * DAY),
    ]
    old = [
        write_old(cache / "tensors/ef/01", 2 * DAY),
        write_old(cache / "files/0/tokenizer.json", 2 * DAY),
        write_old(cache / "resume/key/b", 31 * DAY),
    ]
    assert tidy(cache, dry_run=True) == Tidied(3, 300) and all(path.exists() for path in old)
    assert main(["prune", "--keep-builds", "1"]) == 0
    assert f"gone from {cache}: 3 unused file(s), 300 bytes" in capsys.readouterr().out
    assert all(path.exists() for path in kept) and not any(path.exists() for path in old)
