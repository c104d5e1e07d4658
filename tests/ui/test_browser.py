"""The pages in a real browser: what people do with them; not a word on the console, no request off this machine."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from browsers import Served, chromium, complaints, requested, serve, until
from pages import fill, made_up, record_tiny
from selenium.common.exceptions import StaleElementReferenceException

from schemas.report import Report
from store.open import Store

UNNAMED = """
return [...document.querySelectorAll("a, button, input, select, textarea, summary, [role=img], dialog")]
  .filter((e) => !(e.getAttribute("aria-label") || e.getAttribute("aria-labelledby") || e.textContent.trim() ||
    (e.labels && e.labels.length) || e.title)).map((e) => e.outerHTML.slice(0, 120))
"""
CONTRAST = """
const light = (c) => {
  const [r, g, b] = c.map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b };
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const rgb = (c) => {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data] };
const behind = (e) => {
  for (; e; e = e.parentElement) {
    const c = rgb(getComputedStyle(e).backgroundColor);
    if (c[3]) return c.slice(0, 3);
  }
  return [255, 255, 255] };
const ratio = (e) => {
  const [a, b] = [light(rgb(getComputedStyle(e).color).slice(0, 3)), light(behind(e))];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) };
const says = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
const seen = (e) => e.checkVisibility() && e.getClientRects().length && !e.closest("svg, :disabled");
return [...document.querySelectorAll("main *, .top *")].filter((e) => says(e) && seen(e))
  .map((e) => [ratio(e), e.outerHTML.slice(0, 100)]).filter(([found]) => found < 4.5)
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def builds(driver: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Report]]:
    """Two real builds of the tiny model at two budgets, in one store."""
    folder = tmp_path_factory.mktemp("builds")
    return folder, [record_tiny(folder, budget={"bits_per_weight": bits}) for bits in (3.8, 3.0)]


@pytest.fixture(scope="module")
def page(builds: tuple[Path, list[Report]]) -> Iterator[Served]:
    folder = builds[0]
    with serve(folder / "state" / "store", folder / "state", "--mlflow-url", "http://127.0.0.1:5000") as served:
        yield served


@pytest.fixture(autouse=True)
def quiet(driver: Any, page: Served) -> Iterator[None]:
    """No test may leave a complaint on the console, or a request to anywhere but the page."""
    complaints(driver), requested(driver)
    yield
    assert complaints(driver) == []
    assert {urlsplit(url).hostname for url in requested(driver)} <= {"127.0.0.1"}


def find(driver: Any, selector: str) -> Any:
    return driver.find_element("css selector", selector)


def text(driver: Any, selector: str) -> str:
    while True:
        with suppress(StaleElementReferenceException):  # the page has just drawn it anew: look again
            return str(find(driver, selector).text)


def answered(driver: Any) -> bool:
    return bool(driver.execute_script("return document.querySelector('#explorer').dataset.ready === 'yes'"))


def idle(driver: Any) -> bool:
    return "stale" not in find(driver, "#answer").get_attribute("class")


def busy() -> float:
    """How many processes share a core: limits are those of a machine that does nothing else."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def test_every_page_shows_what_was_built(driver: Any, page: Served, builds: tuple[Path, list[Report]]) -> None:
    first, second = builds[1]
    driver.get(page.url)
    assert text(driver, "h1") == "Builds" and len(driver.find_elements("css selector", "#builds tbody tr")) == 2
    driver.get(f"{page.url}/builds/{first.build_digest}")
    until(lambda: "…" not in text(driver, ".nodes"))
    assert len(driver.find_elements("css selector", ".heat .cell")) == len(first.allocation)
    assert len(driver.find_elements("css selector", ".dag .node")) == len(first.nodes)
    lines = driver.find_elements("css selector", "#sensitivity-figure .line")
    assert len(lines) == 4  # a line per format: the scores came from the store
    assert "this step had never run on this store" in text(driver, "[data-node=candidates]")
    find(driver, "#lineage summary").click()
    assert "calibrate.jsonl" in text(driver, "#lineage") and "see above" in text(driver, "#lineage")
    find(driver, "#lineage .tree a").click()
    assert text(driver, "h1") == first.packed.digest[:12] and "steps.pack.run" in text(driver, "main")
    driver.get(f"{page.url}/builds/{second.build_digest}")
    until(lambda: "…" not in text(driver, ".nodes"))
    assert text(driver, "[data-node=plan]") == "budget.bits_per_weight: 3.8 → 3.0"
    assert text(driver, "[data-node=candidates]").startswith("every trace hit")


def test_two_builds_are_picked_and_compared(driver: Any, page: Served, builds: tuple[Path, list[Report]]) -> None:
    driver.get(page.url)
    for box in driver.find_elements("css selector", "#builds input"):
        box.click()
    find(driver, "#compare").click()
    assert "plan.budget.bits_per_weight" in text(driver, "#changed")
    first, second = builds[1]
    changed = sum(a.format != b.format for a, b in zip(first.allocation, second.allocation, strict=True))
    assert text(driver, "#moved header p").startswith(f"{changed} of 8") and changed > 0
    assert len(driver.find_elements("css selector", ".cell.changed")) == 2 * changed


def test_the_slider_solves_again_and_cells_are_pinned(
    driver: Any, page: Served, builds: tuple[Path, list[Report]]
) -> None:
    from selenium.webdriver.common.keys import Keys

    report = builds[1][0]
    driver.get(f"{page.url}/builds/{report.build_digest}/explore")
    until(lambda: answered(driver))
    assert text(driver, "#bytes-note").startswith(f"{report.bytes.actual:,} bytes")
    before = [cell.text for cell in driver.find_elements("css selector", "#plan button")]
    slider = find(driver, "#budget")
    slider.send_keys(Keys.PAGE_UP * 3)
    until(lambda: idle(driver) and [c.text for c in driver.find_elements("css selector", "#plan button")] != before)
    asked = float(find(driver, "#exact").get_attribute("value"))
    assert report.bpw.linear < asked
    until(lambda: f"bits_per_weight: {asked:g}" in text(driver, "#recipe"))
    cell = find(driver, "#plan button")
    cell.send_keys(Keys.ARROW_RIGHT)
    assert driver.switch_to.active_element.get_attribute("data-unit") == "4"  # the same module of the next block
    cell.send_keys(Keys.ENTER)
    driver.find_elements("css selector", "#cell-formats button")[0].click()
    until(lambda: idle(driver) and driver.find_elements("css selector", "#plan .pinned"))
    until(lambda: "pins:" in text(driver, "#recipe"))
    find(driver, "#pins button").click()
    until(lambda: idle(driver) and "pins:" not in text(driver, "#recipe"))
    solved = re.match(r"solved in (\d+) ms", text(driver, "#took"))
    assert solved and int(solved[1]) < 300


def test_a_copied_recipe_is_built_live_without_quantizing(
    driver: Any, page: Served, builds: tuple[Path, list[Report]]
) -> None:
    folder, (report, _) = builds
    driver.get(f"{page.url}/#token={page.token}")
    assert urlsplit(driver.current_url).fragment == ""
    driver.execute_cdp_cmd(
        "Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    )
    driver.get(f"{page.url}/builds/{report.build_digest}/explore")
    until(lambda: answered(driver))
    exact = find(driver, "#exact")
    exact.clear()
    exact.send_keys("4.5\t")
    until(lambda: "bits_per_weight: 4.5" in text(driver, "#recipe"))
    predicted, size = text(driver, "#kl"), text(driver, "#bytes-note")
    find(driver, "#copy-recipe").click()
    until(lambda: text(driver, "#copied") == "copied")
    copied = driver.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    assert yaml.safe_load(copied)["budget"] == {"bits_per_weight": 4.5}
    find(driver, "#run-recipe").click()
    until(lambda: driver.current_url.endswith("/live"))
    seen = set()

    def ended() -> bool:
        for place in ("#running h2", "#started header p"):
            with suppress(StaleElementReferenceException):  # the page has just drawn it anew: look again
                seen.update(e.text.split(" for ")[0] for e in driver.find_elements("css selector", place))
        return "passed" in seen or any(word.startswith(("ended", "refused")) for word in seen)

    until(ended, 240)
    assert {"tiny", "running", "passed"} <= seen, text(driver, "#started")
    store = Store(folder / "state" / "store")
    newest = Report.model_validate(store.builds.list()[0].report)
    done = {node.id: node.units_computed for node in newest.nodes}
    assert done["candidates"] == done["scores"] == done["statistics"] == 0 < done["packed"]
    assert f"{newest.bytes.actual:,} bytes, exact" == size and f"{newest.predicted_kl:.4g}" == f"{float(predicted):.4g}"
    assert newest.page is not None and "<script" not in Path(newest.page).read_text()
    driver.get(f"{page.url}/builds/{newest.build_digest}")
    find(driver, "#promote").click()
    until(lambda: "promoted" in text(driver, ".title"), 60)
    assert store.builds.champions() == {"tiny": newest.build_digest}


def test_pages_can_be_read_by_everyone(driver: Any, page: Served, builds: tuple[Path, list[Report]]) -> None:
    """Names for what can be pressed, contrast in both themes, and no page wider than a phone."""
    first, second = builds[1]
    build = f"/builds/{first.build_digest}"
    pages = [
        "/",
        build,
        f"{build}/explore",
        f"/diff?a={first.build_digest}&b={second.build_digest}",
        "/live",
        f"{build}/report.html",
    ]
    for path in pages:
        driver.get(page.url + path)
        if path.endswith("explore"):
            until(lambda: answered(driver))
        assert driver.execute_script(UNNAMED) == [], path
        for theme in ("light", "dark"):
            driver.execute_script("document.documentElement.dataset.theme = arguments[0]", theme)
            assert driver.execute_script(CONTRAST) == [], (path, theme)
        phone = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
        wide = driver.execute_script("return document.documentElement.scrollWidth - innerWidth")
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        assert wide <= 0, path


def test_500_builds_and_2000_units_are_painted_within_a_second(driver: Any, tmp_path: Path) -> None:
    store = fill(tmp_path / "store", 499)
    large = made_up(1000, blocks=500, created="2027-01-01T00:00:00+00:00")
    store.builds.save(large.build_digest, large.model_dump(mode="json"))
    with serve(tmp_path / "store", tmp_path / "state") as served:
        painted = "return performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0"
        for path in ("/", f"/builds/{large.build_digest}"):
            taken = []
            for _ in range(3):
                driver.get(served.url + path)
                taken.append(until(lambda: driver.execute_script(painted)))
            assert min(taken) < 1000 * busy(), (path, taken)
        driver.get(served.url)
        filtered = driver.execute_script("""
            const box = document.querySelector("#filter"), begun = performance.now();
            box.value = "nightly 03"; box.dispatchEvent(new Event("input")); document.body.offsetHeight;
            return [performance.now() - begun, document.querySelectorAll("#builds tbody tr:not([hidden])").length]""")
        assert filtered[0] < 100 * busy() and 0 < filtered[1] < 500
        sizes = """return [...document.querySelectorAll("#builds tbody tr")].map((r) => +r.cells[3].dataset.v)"""
        find(driver, "#builds th:nth-child(4) button").click()
        assert (falling := driver.execute_script(sizes)) == sorted(falling, reverse=True)
        find(driver, "#builds th:nth-child(4) button").click()
        assert driver.execute_script(sizes) == sorted(falling)
