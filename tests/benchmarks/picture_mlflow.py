"""Pictures of real builds in MLflow's own page, for README.md: the table, two builds compared, a report.

    bitsmith up && bitsmith run demo && bitsmith run demo --set budget.bits_per_weight=4
    python tests/benchmarks/picture_mlflow.py --recipe demo --into ui/docs

It starts an MLflow server over the state folder's file (or uses the one that `bitsmith up` started), opens the newest
builds of a recipe in headless Chromium, and writes mlflow-compare.png and mlflow-report.png. Without builds it says so.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from browsers import chromium  # noqa: E402

from pipelines import servers  # noqa: E402
from pipelines.services import running, state_folder  # noqa: E402

BUILDS = 4
"""As many as fit side by side."""


@contextmanager
def tracking(folder: Path) -> Iterator[str]:
    """The URL of an MLflow server over the folder's file."""
    state = running(folder)
    if state is not None and state.tracking_uri is not None:
        yield state.tracking_uri
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with subprocess.Popen(
        servers.mlflow_command(port, folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as child:
        try:
            url = f"http://127.0.0.1:{port}"
            until(lambda: servers.answers(f"{url}/health"), 120)
            yield url
        finally:
            child.terminate()


def builds(url: str, recipe: str) -> tuple[str, list[str]]:
    """Id of the recipe's experiment, and of its newest builds' runs."""
    api = f"{url}/api/2.0/mlflow"
    found = servers.call(api, "/experiments/search", {"max_results": 10, "filter": f"name = '{recipe}'"})
    experiments = [each["experiment_id"] for each in found.get("experiments", [])]
    wanted = {"experiment_ids": experiments, "filter": "tags.`bitsmith.parent` = 'true'", "max_results": BUILDS}
    runs = servers.call(api, "/runs/search", wanted).get("runs", []) if experiments else []
    if len(runs) < 2:
        sys.exit(f"{len(runs)} build(s) of {recipe} are in MLflow; a comparison needs two")
    return experiments[0], [run["info"]["run_id"] for run in runs]


def until(ready: Callable[[], Any], seconds: float = 60) -> Any:
    """The first true answer."""
    deadline = time.monotonic() + seconds
    while not (found := ready()):
        if time.monotonic() > deadline:
            sys.exit("MLflow's page did not show it in time")
        time.sleep(0.2)
    return found


def picture(driver: Any, url: str, words: list[str], path: Path) -> None:
    """Open a page, wait until it shows all the words, write it down."""
    driver.get(url)
    until(lambda: all(word in driver.find_element("tag name", "body").text for word in words))
    time.sleep(3)  # the plot is drawn after the words
    driver.save_screenshot(str(path))
    print(path)


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--into", type=Path, default=ROOT / "ui" / "docs")
    options = parser.parse_args()
    options.into.mkdir(parents=True, exist_ok=True)
    with tracking(state_folder()) as url, tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as driver:
        driver.set_window_size(1400, 1100)
        experiment, runs = builds(url, options.recipe)
        query = f"runs={json.dumps(runs)}&experiments={json.dumps([experiment])}"
        picture(driver, f"{url}/#/compare-runs?{query}", ["Parallel", "kl"], options.into / "mlflow-compare.png")
        where = f"{url}/#/experiments/{experiment}/runs/{runs[0]}/artifacts/report.html"
        picture(driver, where, ["report.html"], options.into / "mlflow-report.png")


if __name__ == "__main__":
    main()
