"""A headless Chromium and the page's server, each started once per test session that needs it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--window-size=1280,900",
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
LISTENS = re.compile(r"bitsmith page on (http://127\.0\.0\.1:\d+)/#token=(\S+)")


@dataclass(frozen=True)
class Served:
    """A page that answers, and its token."""

    url: str
    token: str
    pid: int


@contextlib.contextmanager
def serve(store: Path, state: Path, *options: str) -> Iterator[Served]:
    """`python -m ui` on a free port; it must end by itself when asked."""
    command = [sys.executable, "-m", "ui", "--store", str(store), "--state", str(state), "--port", "0", *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as child:
        assert child.stdout is not None
        try:
            said = LISTENS.match(child.stdout.readline())
            assert said, f"exit code {child.poll()}"
            yield Served(said[1], said[2], child.pid)
            child.send_signal(signal.SIGTERM)
            child.wait(20)
        finally:
            child.kill()


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """A browser that records what it logs and what it asks the network for; skips where there is none."""
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no chromium and chromedriver here: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def complaints(driver: Any) -> list[str]:
    """What the console said since the last question."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def requested(driver: Any) -> list[str]:
    """Addresses asked for since the last question; those that never leave the browser are left out."""
    found = []
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            found.append(message["params"]["request"]["url"])
    return [url for url in found if not url.startswith(("data:", "blob:", "about:"))]


def until(what: Callable[[], Any], seconds: float = 30) -> Any:
    """The first true answer; the test fails when there is none in time."""
    import time

    end = time.monotonic() + seconds
    while not (answer := what()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
    return answer
