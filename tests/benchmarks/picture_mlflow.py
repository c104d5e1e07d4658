"""Pictures of real builds in MLflow's own page, for README.md: the table, two builds compared, a report.

    bitsmith up && bitsmith run demo && bitsmith run demo --set budget.bits_per_weight=4
    python tests/benchmarks/picture_mlflow.py --recipe demo --into ui/docs

It starts an MLflow server over the state folder's file (or uses the one that `bitsmith up` started), opens the newest
builds of a recipe in headless Chromium, and writes mlflow-compare.png (of two builds and more) and mlflow-report.png.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
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
    if not runs:
        sys.exit(f"no build of {recipe} is in MLflow")
    return experiments[0], [run["info"]["run_id"] for run in runs]


def has_report(url: str, run: str) -> bool:
    """Whether a build's HTML report was logged."""
    with urllib.request.urlopen(f"{url}/api/2.0/mlflow/artifacts/list?run_id={run}") as reply:
        return any(each["path"] == "report.html" for each in json.load(reply).get("files", []))


def until(ready: Callable[[], Any], seconds: float = 240) -> Any:
    """The first true answer."""
    deadline = time.monotonic() + seconds
    while not (found := ready()):
        if time.monotonic() > deadline:
            sys.exit("MLflow's page did not show it in time")
        time.sleep(0.2)
    return found


def show(driver: Any, url: str, words: list[str]) -> None:
    """Open a page and wait until it shows all the words."""
    driver.get(url)
    until(lambda: all(word in driver.find_element("tag name", "body").text for word in words))


def click(driver: Any, xpath: str) -> None:
    """Click something if it is there: what MLflow shows beside the builds differs between versions."""
    for element in driver.find_elements("xpath", xpath)[:1]:
        driver.execute_script("arguments[0].click()", element)


def keep(driver: Any, path: Path) -> None:
    """Write down what is shown, once MLflow's assistant is out of the way and the rest has come to rest."""
    click(driver, "//button[@data-component-id='mlflow.assistant.chat_panel.close']")
    time.sleep(2)
    driver.save_screenshot(str(path))
    print(path)


def compared(driver: Any, url: str, experiment: str, runs: list[str], path: Path) -> None:
    """Builds side by side: what differs in their recipes, and their metrics."""
    query = f"runs={json.dumps(runs)}&experiments={json.dumps([experiment])}"
    show(driver, f"{url}/#/compare-runs?{query}", ["Parallel", "kl_uniform"])
    click(driver, "//*[text()='Visualizations']")
    for what in ("Parameters", "Tags"):
        click(driver, f"//button[@aria-label='{what} - Show diff only']")
    keep(driver, path)


def report(driver: Any, url: str, experiment: str, run: str, path: Path) -> None:
    """The report of a build in MLflow's artifact view."""
    where = f"{url}/#/experiments/{experiment}/runs/{run}/artifacts"
    show(driver, where, ["report.html"])
    click(driver, "//*[text()='report.html']")
    until(lambda: driver.find_elements("tag name", "iframe"))
    keep(driver, path)


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--into", type=Path, default=ROOT / "ui" / "docs")
    options = parser.parse_args()
    options.into.mkdir(parents=True, exist_ok=True)
    with tracking(state_folder()) as url, tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as driver:
        experiment, runs = builds(url, options.recipe)
        driver.set_window_size(1300, 1500)
        if len(runs) > 1:
            compared(driver, url, experiment, runs, options.into / "mlflow-compare.png")
        if has_report(url, runs[0]):
            report(driver, url, experiment, runs[0], options.into / "mlflow-report.png")


if __name__ == "__main__":
    main()
