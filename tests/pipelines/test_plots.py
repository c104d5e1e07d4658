"""Plots: valid SVG, the same bytes every time, every number of a report drawable, nothing global changed."""

from __future__ import annotations

import math
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from reports import allocation, example_report, interval, measured

from pipelines.plots import Point, bits_of, draw, place

POINTS = (Point("2.5 bits", 30_000, 0.08, 0.07, 0.09), Point("3.5 bits", 42_000, 0.012, 0.011, 0.013))


def _text(path: Path) -> str:
    return " ".join(ElementTree.parse(path).getroot().itertext())


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    report = example_report()
    scores = {row.unit: {"int2-g64": 0.02, "int4-g64": 0.002} for row in report.allocation}
    first = draw(report, tmp_path / "a", scores=scores, points=POINTS)
    second = draw(report, tmp_path / "b", scores=scores, points=POINTS)
    assert set(first) == {"bits", "sensitivity", "size_kl"}
    for name, path in first.items():
        text = path.read_bytes()
        assert text == second[name].read_bytes()
        assert b"<dc:date>" not in text


def test_plots_say_what_they_show(tmp_path: Path) -> None:
    report = example_report()
    scores = {row.unit: {"int2-g64": 0.02, "int4-g64": 0.002} for row in report.allocation}
    paths = draw(report, tmp_path, scores=scores, points=POINTS)
    for word in ("self_attn.qkv", "mlp.down_proj", "2-g64", "4-g64", "bits per code", "block"):
        assert word in _text(paths["bits"])
    for word in ("int2-g64", "int4-g64", "plan", "nats per token"):
        assert word in _text(paths["sensitivity"])
    for word in ("mixed, packed", "uniform int3-g64", "greedy", "2.5 bits", "MB"):
        assert word in _text(paths["size_kl"])


def test_odd_reports_can_be_drawn(tmp_path: Path) -> None:
    """No uniform baseline, no scores, scores of zero and below, very many blocks, an interval beside its value."""
    odd = measured(10, 0.02).model_copy(update={"kl": interval(0.02).model_copy(update={"low": 0.021})})
    report = example_report(uniform=None, uniform_format=None, mixed=odd, allocation=allocation(120))
    assert set(draw(report, tmp_path)) == {"bits", "size_kl"}
    scores = {row.unit: {"int2-g64": 0.0, "int3-g64": -0.001} for row in report.allocation}
    paths = draw(report, tmp_path, scores=scores)
    assert paths["sensitivity"].stat().st_size < 1_000_000


def test_names() -> None:
    assert place("layers.11.mlp.experts.3.gate") == (11, "mlp.experts.3.gate")
    assert place("lm_head") == (0, "lm_head")
    assert bits_of("int5-row-asym") == 5
    assert math.isnan(bits_of("nothing"))


def test_importing_plots_imports_no_matplotlib() -> None:
    code = "import sys, pipelines.plots, pipelines.show; sys.exit(bool({'matplotlib', 'rich'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
