"""Figures are well-formed, escaped, and say what the report says."""

import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest
from pages import broken_down, made_up
from reports import example_report, node, trained_report

from schemas.report import AllocationRow
from ui.figures.block_curves import PER_ROW, WIDTH, block_curves
from ui.figures.curve import training_curve
from ui.figures.dag import Graph, dag
from ui.figures.heatmap import heat_map
from ui.figures.intervals import domains, positions, whisker
from ui.figures.scatter import Dot, predicted_measured, size_kl
from ui.figures.sensitivity import sensitivity
from ui.figures.svg import decades, tag, ticks

EVIL = '"><script>alert(1)</script>'


def parsed(figure: Any) -> ElementTree.Element:
    return ElementTree.fromstring(str(figure))


def rows(*units: tuple[str, str]) -> list[AllocationRow]:
    return [AllocationRow(unit=unit, format=name, bytes=1000, score=0.01) for unit, name in units]


def test_text_and_attributes_are_escaped() -> None:
    assert "<script" not in str(tag("text", EVIL, title=EVIL))
    assert parsed(tag("text", EVIL, title=EVIL)).attrib["title"] == EVIL


@pytest.mark.parametrize("low", [0.0, 0.003, 17.0])
def test_ticks_are_round_and_within(low: float) -> None:
    found = ticks(low, low + 1.7, 5)
    assert 3 <= len(found) <= 9 and low - 1e-9 <= found[0] and found[-1] <= low + 1.7 + 1e-9
    assert decades(0.002, 30) == [0.01, 0.1, 1.0, 10.0]


def test_a_cell_per_unit_where_it_belongs() -> None:
    given = rows(
        ("layers.0.mlp.down", "int2-g64"),
        ("layers.1.mlp.down", "int8-g64"),
        ("layers.1.self_attn.o", "q4_k"),
        ("lm_head", EVIL),
    )
    cells = [e for e in parsed(heat_map(given, {"layers.1.mlp.down"})).iter("rect")]
    classes = [cell.attrib["class"] for cell in cells]
    assert classes == ["cell b2", "cell b8 changed", "cell b4", "cell b0"]
    x = [float(cell.attrib["x"]) for cell in cells]
    y = [float(cell.attrib["y"]) for cell in cells]
    assert x[0] < x[1] == x[2] and y[0] == y[1] < y[2] < y[3]
    assert cells[3][0].text == f"lm_head: {EVIL}, 1.00 kB, predicted KL 0.01"


def test_every_figure_of_a_large_report_is_well_formed() -> None:
    report = broken_down(made_up(3, blocks=40))
    scores = {row.unit: {"int2-g64": row.score * 4, row.format: row.score} for row in report.allocation}
    dots = [Dot(3e6, 0.02, EVIL, "mixed", 0.01, 0.03, f"/builds/{EVIL}", named=True), Dot(2e6, 0.5, "b")]
    for figure in (
        heat_map(report.allocation), sensitivity(report.allocation, scores), sensitivity(report.allocation),
        domains(report.domains), positions(report.positions), whisker(report.mixed.kl, 0.3, "mixed"),
        size_kl(dots), predicted_measured(dots), dag(report.recipe_document, report.nodes),
    ):  # fmt: skip
        assert parsed(figure).tag == "svg"


def test_edges_that_others_imply_are_left_out() -> None:
    graph = Graph({"a": (), "b": ("a",), "c": ("a", "b"), "d": ("a", "c", "b")})
    assert graph.essential() == {"a": (), "b": ("a",), "c": ("b",), "d": ("c",)}
    assert graph.layers() == {"a": 0, "b": 1, "c": 2, "d": 3}


def test_a_box_per_node_says_what_it_did() -> None:
    document = {"nodes": {"a": {"inputs": {}}, "b": {"inputs": {"in": "a.port"}}}}
    nodes = (node("a", units_computed=0, units_cached=0), node("b", status="partial", units_computed=2, units_cached=3))
    drawn = parsed(dag(document, nodes))
    boxes = [box.attrib["class"] for box in drawn.iter("rect") if box.attrib["class"].startswith("node")]
    assert boxes == ["node source", "node partial"]
    assert "in part, 2 of 5, 1.2 s" in ["".join(text.itertext()) for text in drawn.iter("text")]


def test_a_report_without_scores_above_zero_has_no_sensitivity_figure() -> None:
    report = example_report(allocation=tuple(r.model_copy(update={"score": 0.0}) for r in example_report().allocation))
    assert sensitivity(report.allocation) == ""


def test_curves_of_trainings_stay_inside_and_every_block_has_its_own() -> None:
    trained, apart = trained_report().distilled, trained_report(blocks=PER_ROW + 2).distilled
    assert trained is not None and apart is not None
    assert parsed(training_curve(trained)).tag == "svg"
    drawn = parsed(block_curves(apart.blocks))
    small = list(drawn.iter("g"))
    assert len(small) == PER_ROW + 2 and float(drawn.attrib["height"]) == 2 * 96
    for line in drawn.iter("path"):
        points = [tuple(map(float, point.split())) for point in line.attrib["d"].removeprefix("M").split("L")]
        assert all(0 <= x <= WIDTH and 0 <= y <= 96 for x, y in points)
    assert small[3][0].text == "block 3: 0.05 → 0.03, step 20 kept, held out less training 0.003"
