"""README's pictures of the page, from a store that holds real builds: `screenshots.py --store URL --out ui/docs`.

    bitsmith run demo && bitsmith run demo --set budget.bits_per_weight=2.8
    .venv/bin/python tests/benchmarks/screenshots.py

The champion, or else the newest build that passed, is shown and compared with another one of the same model. Pictures
are reduced to a palette, so that each stays well below 200 kB.
"""

from __future__ import annotations

import argparse
import base64
import io
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from browsers import chromium, serve, until

from store.builds import Build
from store.open import Store

WIDTH = 1200
PHONE = 390
MOST = 200_000


def shoot(driver: Any, path: Path, height: int, selector: str | None = None) -> None:
    """The upper part of the page, or of one element, as a small PNG."""
    from PIL import Image

    box = driver.execute_script(
        "const e = arguments[0] ? document.querySelector(arguments[0]) : document.documentElement;"
        "const r = e.getBoundingClientRect(); return [r.left + scrollX, r.top + scrollY, r.width, r.height]",
        selector,
    )
    clip = {"x": box[0], "y": box[1], "width": box[2], "height": min(height, box[3]), "scale": 1}
    asked = {"format": "png", "captureBeyondViewport": True, "clip": clip}
    data = base64.b64decode(driver.execute_cdp_cmd("Page.captureScreenshot", asked)["data"])
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    for colours in (256, 128, 64):
        picture.quantize(colours, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size < MOST:
            break
    print(f"{path}: {picture.width} x {picture.height}, {path.stat().st_size:,} bytes")


def pictures(driver: Any, url: str, builds: list[Build], out: Path) -> None:
    """Every picture there is."""
    shown = next((b for b in builds if b.champion), next((b for b in builds if b.report["passed"]), builds[0]))
    page = f"{url}/builds/{shown.digest}"
    alike = (b.digest for b in builds if b.report["model"] == shown.report["model"] and b.digest != shown.digest)
    other = next(alike, None)

    def ready(script: str) -> Callable[[], Any]:
        return lambda: driver.execute_script(f"return {script}")

    driver.get(url)
    shoot(driver, out / "builds.png", 620)
    driver.get(page)
    until(ready("!document.querySelector('.nodes').textContent.includes('…')"), 120)
    shoot(driver, out / "build.png", 1350)
    shoot(driver, out / "graph.png", 1300, "#graph")
    driver.get(f"{page}/explore")
    until(ready("document.querySelector('#explorer').dataset.ready === 'yes'"), 120)
    time.sleep(0.5)
    shoot(driver, out / "explore.png", 1150)
    if other is not None:
        driver.get(f"{url}/diff?a={shown.digest}&b={other}")
        shoot(driver, out / "diff.png", 1300)
    phone = {"width": PHONE, "height": 840, "deviceScaleFactor": 1.5, "mobile": True}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    driver.get(page)
    shoot(driver, out / "phone-dark.png", 1100)


def main() -> None:
    """Serve the store, look, write."""
    parser = argparse.ArgumentParser(description="Make README's pictures of the page.")
    parser.add_argument("--store", default=".bitsmith/store")
    parser.add_argument("--out", type=Path, default=Path("ui/docs"))
    options = parser.parse_args()
    builds = list(Store(options.store).builds.list())
    if not builds:
        sys.exit(f"no builds in {options.store}: run `bitsmith run demo` first")
    options.out.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as scratch,
        serve(Path(options.store), Path(scratch) / "state") as served,
        chromium(Path(scratch) / "profile") as driver,
    ):
        size = {"width": WIDTH, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        pictures(driver, served.url, builds, options.out)


if __name__ == "__main__":
    main()
