"""`bitsmith ui`: the page alone, in the foreground; `bitsmith up` starts it beside the other services."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from pipelines.services import running
from pipelines.settings import settings


def ui(options: argparse.Namespace) -> int:
    """Serve until interrupted. `pipelines` and `ui` do not import each other, so the page is a process of its own."""
    where = settings(options.store)
    services = running(where.state)
    command = [
        sys.executable,
        "-m",
        "ui",
        "--store",
        where.store,
        "--state",
        str(where.state),
        "--port",
        str(options.port),
    ]
    for name, option in (("prefect", "--prefect-url"), ("mlflow", "--mlflow-url")):
        if services is not None and name in services.services:
            command += [option, services.services[name].url]
    child = subprocess.Popen(command, env={**os.environ, "BITSMITH_HOME": str(where.state)})
    try:
        return child.wait()
    except KeyboardInterrupt:
        child.terminate()
        return child.wait()
