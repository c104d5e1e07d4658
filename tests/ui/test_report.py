"""The self-contained report: one file, no script, nothing outside it."""

import os
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from pages import broken_down, made_up
from reports import example_report, trained_report

from schemas.report import Report
from ui.report import main, report_html
from ui.view import BuildView


class Links(HTMLParser):
    """Tags, and every address in a document that a browser would follow or fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [v or "" for k, v in attrs if k in ("href", "src", "srcset", "action", "data", "poster")]
        assert not any(k.startswith("on") for k, _ in attrs)


def read(report: Report) -> tuple[str, Links]:
    text, links = report_html(BuildView(report)), Links()
    links.feed(text)
    return text, links


@pytest.mark.parametrize("report", [example_report(), broken_down(made_up(5, blocks=20))], ids=["small", "everything"])
def test_nothing_is_fetched_or_run(report: Report) -> None:
    text, links = read(report)
    assert not links.tags & {"script", "link", "iframe", "img", "object", "embed", "form", "base"}
    assert all(address.startswith("#") for address in links.addresses)
    assert not re.search(r"@import|url\(", text)
    assert "default-src 'none'" in text


def test_it_shows_what_the_report_says() -> None:
    text, _ = read(broken_down(made_up(5)))
    for said in (
        "KL by domain",
        "tutorials",
        "KL by position",
        "all modules is given below.",
        "Reproduce",
        "bitsmith reproduce",
    ):
        assert said in text


def test_both_losses_of_a_training_and_their_gap_are_drawn() -> None:
    text, _ = read(trained_report())
    section = text[text.index('id="training"') :]
    section = section[: section.index("</section>")]
    assert section.count('class="line ') == 2 and 'class="gap"' in section and ">held out<" in section
    assert "Held out less training loss: −0.01" in section or "Held out less training loss: -0.01" in section
    text, _ = read(trained_report(blocks=7))
    section = text[text.index('id="training"') :]
    section = section[: section.index("</section>")]
    assert section.count('class="line ') == 14 and "block 6: 0.05 → 0.03, step 20 kept" in section
    assert "7 trainings, one after the other" in section and 'class="gap"' not in section


def test_losses_that_cannot_be_compared_have_no_gap() -> None:
    report = trained_report()
    assert report.distilled is not None
    text, _ = read(report.model_copy(update={"distilled": report.distilled.model_copy(update={"gap": None})}))
    assert 'class="gap"' not in text and "not the same quantity" in text


def test_a_speed_that_was_not_measured_is_said_to_be() -> None:
    text, _ = read(example_report(speed=None, loaded="blocks"))
    assert "not measured: verified block by block, to bound memory" in text and "tok/s" not in text


def test_text_from_recipes_and_models_is_escaped() -> None:
    evil = "<img src=x onerror=alert(1)>"
    rows = tuple(
        r.model_copy(update={"unit": f"layers.0.{evil}", "format": evil}) for r in example_report().allocation[:1]
    )
    gates = tuple(g.model_copy(update={"name": evil, "value": evil}) for g in example_report().gates)
    report = example_report(
        model=evil, notes=(evil,), allocation=rows, gates=gates, uniform_format=evil, libraries={evil: evil}
    )
    text, links = read(report)
    assert "<img" not in text and "img" not in links.tags
    assert text.count("&lt;img") >= 6


def test_the_command_writes_the_file_soon_and_without_torch(tmp_path: Path) -> None:
    source, out = tmp_path / "report.json", tmp_path / "report.html"
    source.write_text(made_up(1).model_dump_json())
    code = (
        "import sys, ui.report; code = ui.report.main(sys.argv[1:]); "
        "assert not {'torch', 'prefect', 'mlflow', 'matplotlib'} & set(sys.modules); sys.exit(code)"
    )
    started = time.process_time(), os.times().children_user
    subprocess.run([sys.executable, "-c", code, str(source), str(out)], check=True, timeout=60)
    assert os.times().children_user - started[1] < 3  # 0.8 s on an idle machine
    assert out.read_text().startswith("\n<!doctype html>") or out.read_text().lstrip().startswith("<!doctype html>")


def test_what_is_no_report_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "report.json").write_text('{"version": 1}')
    assert main([str(tmp_path / "report.json"), str(tmp_path / "out.html")]) == 2
    assert "build_digest" in capsys.readouterr().err and not (tmp_path / "out.html").exists()
