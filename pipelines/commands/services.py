"""`bitsmith up`, `down`, `status`: the services of this machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipelines.services import down, show_status, up

ROOT = Path(__file__).resolve().parents[2]
"""Where prefect.yaml is."""


def start(options: argparse.Namespace) -> int:
    """Start what does not run yet."""
    up(ROOT)
    return 0


def end(options: argparse.Namespace) -> int:
    """Stop what `up` started, and say so."""
    stopped = down()
    print("stopped " + ", ".join(stopped) if stopped else "nothing was running")
    return 0


def status(options: argparse.Namespace) -> int:
    """One line per service; 0 when all of them answer."""
    return show_status()
