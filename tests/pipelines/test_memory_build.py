"""A build of a model larger than the memory it may use; see tests/benchmarks/memory_build.py."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "memory_build.py"


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    ("hidden", "inner", "blocks", "limit"),
    [(512, 1408, 64, 200), pytest.param(2048, 5632, 32, 2048, id="3.3GB")],
)
def test_no_step_but_verify_needs_the_model_in_memory(
    hidden: int, inner: int, blocks: int, limit: int, tmp_path: Path
) -> None:
    words = {"hidden": hidden, "inner": inner, "blocks": blocks, "limit-mib": limit, "folder": tmp_path}
    command = [sys.executable, str(SCRIPT), *(f"--{name}={value}" for name, value in words.items())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    size = float(re.findall(r"model ([\d,]+) MiB", done.stdout)[0].replace(",", ""))
    grown = {node: float(by.replace(",", "")) for node, by in re.findall(r"^(\w+) .*\+([\d,]+)$", done.stdout, re.M)}
    assert limit < size and max(by for node, by in grown.items() if node != "verdict") < size, done.stdout
