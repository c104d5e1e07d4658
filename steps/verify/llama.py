"""llama.cpp itself, built from the package llama-cpp-python into an environment of its own.

It is never installed beside Bitsmith: it compiles for a quarter of an hour, and brings its own numpy.

    python -m steps.verify.llama            build it (uv or pip; a C++ compiler and cmake are needed)

N windows, S positions, V vocabulary.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from schemas.errors import InputError

PACKAGE = "llama-cpp-python==0.3.36"
OPTIONS = "-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAVA_BUILD=OFF"
WORKER = Path(__file__).with_name("llama_worker.py")


def environment() -> Path:
    """Where it is: BITSMITH_LLAMA, else ~/.cache/bitsmith/llama. An empty value is none: never the current folder."""
    return Path(os.environ.get("BITSMITH_LLAMA") or "~/.cache/bitsmith/llama").expanduser()


def python() -> Path:
    """Its interpreter; InputError with the command that builds it when it is not there."""
    found = environment() / "bin" / "python"
    if not found.exists() or not list(environment().glob("lib/python*/site-packages/llama_cpp/lib/libllama.*")):
        raise InputError(
            "llama.cpp is not built",
            where=str(environment()),
            wanted=f"an environment with {PACKAGE}",
            fix="python -m steps.verify.llama builds it, in about 15 minutes; BITSMITH_LLAMA names another place",
        )
    return found


def libraries() -> Path:
    """The folder of its shared libraries."""
    python()
    return next(environment().glob("lib/python*/site-packages/llama_cpp/lib"))


def logits(gguf: Path, ids_NS: torch.Tensor) -> torch.Tensor:
    """Its logits [N, S, V] fp32 at every position of every window, on the CPU.

    It rounds activations to 8 bits where weights are quantized, so they differ from exact ones by about 1 % of their
    spread. InputError when it does not load or run the file.
    """
    with tempfile.TemporaryDirectory(prefix="bitsmith-llama-") as scratch:
        tokens, out = Path(scratch, "tokens.npy"), Path(scratch, "logits.npy")
        np.save(tokens, ids_NS.to(torch.int32).numpy())
        run_worker(gguf, str(tokens), str(out))
        return torch.from_numpy(np.load(out))


def run_worker(gguf: Path, *arguments: str) -> None:
    """One call of the worker in llama.cpp's environment."""
    command = [str(python()), str(WORKER), str(gguf.resolve()), *arguments]
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, check=False, env=bare, capture_output=True, text=True)
    if done.returncode:
        raise InputError(
            "llama.cpp does not run the file",
            where=str(gguf),
            got=(done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1],
            fix="check the file with `bitsmith verify`; build it again if it is sound",
        )


def build() -> None:
    """Make the environment; CalledProcessError when the compiler fails."""
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    settings = os.environ | {"CMAKE_ARGS": OPTIONS}
    subprocess.run([uv, "venv", "-q", "--allow-existing", "--python", sys.executable, str(environment())], check=True)
    target = str(environment() / "bin" / "python")
    install = [uv, "pip", "install", "--python", target, "--no-binary", "llama-cpp-python", PACKAGE]
    subprocess.run(install, check=True, env=settings)


if __name__ == "__main__":
    build()
