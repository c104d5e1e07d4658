"""The Triton kernels against dequantize and multiply: on a GPU where there is one, else in Triton's interpreter.

The interpreter is chosen when Triton is first imported, for the whole process, and with it kernels would serve every
packed model on the CPU; so these tests run in a process of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

CHECKS = Path(__file__).parent / "kernel_checks.py"
NO_TRITON = "Triton is not installed: pip install -e '.[gpu]', or put it on PYTHONPATH"
NO_GPU = "no GPU here"
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason=NO_TRITON)


def checks(*arguments: str, interpret: bool) -> None:
    """Run kernel_checks.py by pytest, all of it or what -k names."""
    env = {**os.environ, "TRITON_INTERPRET": "1" if interpret else "0"}
    options = ["-q", "-p", "no:cacheprovider", "--timeout=1800"]
    command = [sys.executable, "-m", "pytest", *options, str(CHECKS), *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=env, cwd=CHECKS.parents[4])
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout and "skipped" not in done.stdout


@needs_triton
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_kernel_in_the_interpreter() -> None:
    checks(interpret=True)


@needs_triton
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_GPU)
def test_every_kernel_on_the_gpu() -> None:
    checks(interpret=False)


@needs_triton
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kernels_compile_for_ampere_and_hopper_without_a_gpu_and_keep_to_registers() -> None:
    code = (CHECKS.parent / "compile_checks.py", "3")
    env = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, *map(str, code)], check=False, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
