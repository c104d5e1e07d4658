"""An environment of its own for a peer whose versions are not ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch


def peer_python(folder: Path, package: str) -> Path:
    """The interpreter of the peer's environment, made if it is not there; CalledProcessError if it cannot be.

    Made with uv, with the torch of this one.
    """
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        uv = [str(Path(sys.executable).with_name("uv"))]
        environment = os.environ | {"UV_FIND_LINKS": os.environ.get("PIP_FIND_LINKS", "")}
        subprocess.run(
            [*uv, "venv", "-q", "--clear", "--python", sys.executable, str(folder)], check=True, env=environment
        )
        wanted = [package, f"torch=={torch.__version__.split('+')[0]}"]
        subprocess.run([*uv, "pip", "install", "-q", "--python", str(python), *wanted], check=True, env=environment)
        (folder / "ready").write_text("\n".join(wanted))
    return python
