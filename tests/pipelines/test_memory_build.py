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
    ("hidden", "inner", "blocks", "limit", "load"),
    [(512, 1408, 64, 250, "blocks"), pytest.param(2048, 5632, 32, 2048, "auto", id="3.3GB")],
)
def test_no_step_needs_the_model_in_memory(
    hidden: int, inner: int, blocks: int, limit: int, load: str, tmp_path: Path
) -> None:
    """And `plan` foretells the peak, which is far below what `verify` would take if it loaded the model whole."""
    words = {"hidden": hidden, "inner": inner, "blocks": blocks, "limit-mib": limit, "load": load, "folder": tmp_path}
    command = [sys.executable, str(SCRIPT), *(f"--{name}={value}" for name, value in words.items())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    size = float(re.findall(r"model ([\d,]+) MiB", done.stdout)[0].replace(",", ""))
    lines = re.findall(r"^(\w+) +([\d,]+) MiB, +([+-][\d,]+)$", done.stdout, re.M)
    peaks, grown = ({row[0]: float(row[i].replace(",", "")) for row in lines} for i in (1, 2))
    foretold = float(re.findall(r"foretold ([\d,]+) MiB", done.stdout)[0].replace(",", ""))
    assert {"recoded", "verdict", "generations", "packed"} <= set(peaks)
    assert limit < size and max(grown.values()) < size, done.stdout
    assert max(peaks.values()) < 1.2 * foretold, done.stdout
