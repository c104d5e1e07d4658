"""How far a build is: counts over batches, rate and time left, what a page reads while it runs, and how it ends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builds import open_build

from pipelines import progress
from pipelines.commands.builds import _running
from pipelines.drive import drive
from pipelines.progress import Watch, watch
from store.open import Store
from store.running import Running

FIRST = Running("id", "demo", 22, 0.0, 0.0, "here", 7)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> tuple[Watch, list[Running], list[tuple[str, int, int]], list[float]]:
    """A watch that writes every word, the words, what a terminal is told, and the clock in a list."""
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(progress, "WRITE_EVERY_SECONDS", 0.0)
    written: list[Running] = []
    told: list[tuple[str, int, int]] = []
    return Watch(FIRST, written.append, lambda *words: told.append(words)), written, told, clock


def test_batches_count_on(seen: Any) -> None:
    watched, written, told, clock = seen
    watched.begin("candidates", 10)
    for batch in (6, 4):
        for done in range(1, batch + 1):
            clock[0] += 2.0
            watched("candidates", done, batch)
        watched.batch_done(batch)
    assert told == [("candidates", done, 10) for done in range(1, 11)]
    halfway = written[-9]
    assert (halfway.node, halfway.done, halfway.total, halfway.rate, halfway.eta) == ("candidates", 4, 10, 0.5, 12.0)
    assert (written[-1].done, written[-1].eta) == (10, 0.0)
    watched.node_done()
    watched.begin("scores", 3)
    assert (written[-1].nodes_done, written[-1].node, written[-1].done, written[-1].rate) == (1, "scores", 0, None)


def test_a_long_item_speaks_for_its_node_and_many_items_for_themselves(seen: Any) -> None:
    watched, written, told, _ = seen
    watched.begin("distilled", 1)
    watched("distilled: steps", 6, 24)
    assert (written[-1].node, written[-1].what, written[-1].done, written[-1].total) == ("distilled", "steps", 6, 24)
    watched("distilled", 1, 1)
    assert (written[-1].what, written[-1].done, written[-1].total) == ("", 1, 1)
    watched.begin("candidates", 2)
    watched("candidates: columns", 6, 24)
    assert (written[-1].what, written[-1].done, written[-1].total) == ("", 0, 2)
    assert told == [("distilled: steps", 6, 24), ("distilled", 1, 1)]


def test_an_end_is_told_once_however_often_an_item_goes_over_its_blocks(seen: Any) -> None:
    """As recode does: curvature backwards, then the original and two selections on the held-out windows."""
    watched, written, told, _ = seen
    for node in ("recoded", "again"):
        watched.begin(node, 1)
        for _pass in range(5):
            for done in (1, 2):
                watched(f"{node}: blocks", done, 2)
        watched(node, 1, 1)
        assert [each for each in told if each[0] == f"{node}: blocks"].count((f"{node}: blocks", 2, 2)) == 1
        assert told.count((f"{node}: blocks", 1, 2)) == 5 and told[-1] == (node, 1, 1)
    assert (written[-2].what, written[-2].done) == ("blocks", 2), "the page sees every pass"


def test_a_page_that_looks_at_the_store_sees_a_build_and_its_end(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with pytest.raises(RuntimeError, match="boom"), watch(store, "demo", 22, "a-run") as watched:
        watched.begin("candidates", 264)
        (running,) = Store(tmp_path / "store").under_way.list()
        assert (running.recipe, running.nodes_total, running.flow_run, running.alive) == ("demo", 22, "a-run", True)
        raise RuntimeError("boom")
    assert store.under_way.list() == ()


def test_progress_that_cannot_be_written_fails_no_build(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "running").write_text("a file where a folder should be")
    with watch(store, "demo", 22, None) as watched:
        watched.begin("candidates", 264)


def test_a_real_build_tells_every_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through Runner.execute, node by node, as a flow does it."""
    monkeypatch.setattr(progress, "WRITE_EVERY_SECONDS", 0.0)
    build = open_build(tmp_path)
    written: list[Running] = []
    watched = Watch(FIRST, written.append, lambda *words: None)

    def execute(node: str, outputs: Any, labels: Any) -> int:
        watched.begin(node, len(labels))
        computed = build.runner.execute(node, outputs, labels, watched)
        watched.node_done()
        return computed

    drive(build.runner, execute, lambda row: watched.node_done())
    assert written[-1].nodes_done == len(build.runner.bound)
    ends = {each.node: (each.done, each.total) for each in written}
    assert ends["candidates"] == (32, 32) and ends["scores"] == (32, 32) and ends["statistics"] == (2, 2)
    assert max(each.total for each in written if each.what == "steps") == 2


def test_in_words() -> None:
    now = replace(FIRST, node="candidates", done=120, total=264, rate=3.14, eta=45.9, nodes_done=10)
    assert _running(now) == ("demo runs: node 11 of 22, candidates 120/264, 3.1/s, 46 s left of it (process 7 on here)")
    assert _running(replace(now, alive=False)).startswith(
        "demo: killed at candidates on here, last heard of 1970-01-01"
    )
