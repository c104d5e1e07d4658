"""What the console shows: every fact of a report, within the width, plain where nobody looks."""

from __future__ import annotations

import io

import pytest
from reports import digest, example_report, interval, trained_report

from pipelines.show import show_plan, show_report, size
from schemas.refined import Distilled
from schemas.report import Bytes, Contrast, GateRow


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _shown(width: int = 100, **changes: object) -> str:
    out = io.StringIO()
    show_report(example_report(**changes), file=out, width=width)
    return out.getvalue()


def test_a_report_shows_every_fact() -> None:
    distilled = Distilled(before=0.05, after=0.03, step_kept=40, tokens=65536)
    text = _shown(distilled=distilled, mlflow_run_id="run-1")
    for fact in (
        "demo on tiny: passed",
        "2.9900 bits per weight",
        "36,500 bytes (as predicted)",
        "0.02100",
        "±0.00210",
        "uniform int3-g64",
        "7.500",
        "allocated against uniform: better; KL -0.01500 [-0.01650, -0.01350], ratio 0.625 [0.562, 0.688]",
        "predicted KL of the plan 0.02400, measured 0.02500",
        "allocation by ilp: objective 0.024, bound 0.024, gap 0 (integer program)",
        "binding: bytes of linears; 10 kB more buys 0.0001 KL",
        "32 random plans of no more bytes: mean score 0.2, best 0.1",
        "stability: 90% of formats stay over 100 resamples of 24 documents",
        "step 40 kept, 65,536 tokens",
        "31.0 decode",
        "max_kl",
        "61.5 s",
        "cached",
        "note: context capped to 128 tokens",
        "/builds/demo",
        digest("build"),
        "run-1",
    ):
        assert fact in text, fact
    assert "\x1b" not in text


def test_a_speed_that_was_not_measured_is_said_to_be() -> None:
    text = " ".join(_shown(speed=None, loaded="blocks").split())
    assert "speed was not measured, as the model was loaded block by block to bound memory" in text
    assert "tokens/s" not in text


def test_a_failure_stands_out() -> None:
    gates = (GateRow(name="beats_uniform", limit="better", value="no difference", passed=False),)
    text = _shown(passed=False, gates=gates, uniform=None, uniform_format=None)
    assert "FAILED" in text.splitlines()[0]
    assert "no difference" in text
    assert "uniform None" not in text


def test_a_size_that_was_not_predicted_is_told() -> None:
    assert "predicted 36,400, off by +100" in _shown(200, bytes=Bytes(predicted=36_400, actual=36_500, header=1))


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_lines_keep_the_width(width: int) -> None:
    long = "/a/very/long/path" * 12
    contrast = Contrast(first="a" * 30, second="b" * 30, difference=interval(1), ratio=interval(1), verdict="worse")
    text = _shown(width, notes=("note " + "x" * 150, long), contrasts=(contrast,))
    assert max(map(len, text.splitlines())) <= width
    assert "FAILED" not in text


def test_colours_only_in_a_terminal_that_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    coloured, plain = _Terminal(), _Terminal()
    show_report(example_report(), file=coloured, width=80)
    assert "\x1b[" in coloured.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    show_report(example_report(), file=plain, width=80)
    assert "\x1b" not in plain.getvalue()


def test_an_encoding_without_the_signs_is_no_error() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    show_report(example_report(notes=("größer",)), file=out, width=80)
    out.flush()
    text = raw.getvalue().decode("ascii")
    assert "+-0.00210" in text
    assert "gr??er" in text
    assert "----" in text


def test_a_plan_is_a_table_without_markup() -> None:
    out = io.StringIO()
    rows = [{"node": "a", "to run": 12345, "state": "runs"}, {"node": "[red]b", "to run": "", "state": None}]
    show_plan(rows, title="recipe x", file=out)
    lines = out.getvalue().splitlines()
    assert lines[0] == "recipe x"
    assert lines[1].split() == ["node", "to", "run", "state"]
    assert lines[3].split() == ["a", "12,345", "runs"]
    assert lines[4].split() == ["[red]b", "-"]
    narrow = io.StringIO()
    show_plan(rows, columns=["state"], file=narrow)
    assert "node" not in narrow.getvalue()
    show_plan([], file=narrow)


def test_sizes() -> None:
    assert [size(n) for n in (0, 999, 1000, 36_500, 5_000_000_000)] == [
        "0 B",
        "999 B",
        "1.00 kB",
        "36.50 kB",
        "5.00 GB",
    ]


def test_the_gap_of_a_training_is_shown() -> None:
    for report, said in (
        (trained_report(), "held out less training loss -0.01000"),
        (trained_report(blocks=4), "block by block: held out less training loss +0.00000 to +0.00300"),
    ):
        out = io.StringIO()
        show_report(report, file=out, width=100)
        assert said in out.getvalue()
