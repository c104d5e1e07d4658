"""The builds of a store: read once each, whichever version wrote them; and two of them side by side."""

from pathlib import Path

from pages import fill, made_up
from reports import digest

from ui.catalog import Catalog
from ui.diff import compare


def test_lines_say_what_reports_say(tmp_path: Path) -> None:
    catalog = Catalog(fill(tmp_path, 3))
    newest = catalog.lines()[0]
    report = catalog.report(newest)
    assert report is not None and report.build_digest == newest.digest == made_up(2).build_digest
    assert (newest.bytes, newest.kl, newest.against_uniform) == (report.bytes.actual, report.mixed.kl.value, 0.667)
    assert (newest.gates, newest.passed, newest.promoted, newest.champion) == ((1, 1), True, False, False)


def test_a_record_is_read_once_and_again_when_it_changes(tmp_path: Path) -> None:
    store = fill(tmp_path, 3)
    catalog, loads = Catalog(store), []
    load = store.builds.load
    store.builds.load = lambda d: loads.append(d) or load(d)  # type: ignore[method-assign, func-returns-value]
    assert len(catalog.lines()) == len(catalog.lines()) == len(loads) == 3
    report = made_up(1, model="another")
    store.builds.save(report.build_digest, report.model_dump(mode="json"))
    assert {line.model for line in catalog.lines() if line.digest == report.build_digest} == {"another"}
    assert loads[3:] == [report.build_digest]
    store.builds.promote(report.build_digest)
    store.builds.remove(made_up(0).build_digest)
    assert [line.promoted for line in catalog.lines()] == [False, True]


def test_records_of_other_versions_have_a_line_and_no_report(tmp_path: Path) -> None:
    store = fill(tmp_path, 1)
    store.builds.save(digest("old"), {"recipe": "old", "bytes": "many", "mixed": [], "created": 7, "passed": "yes"})
    catalog = Catalog(store)
    old = catalog.find(digest("old")[:9])
    assert old is not None and (old.recipe, old.bytes, old.kl, old.passed) == ("old", None, None, None)
    assert catalog.report(old) is None
    assert catalog.find("") is None


def test_a_difference_names_inputs_fields_and_units() -> None:
    first = made_up(4)
    document = {"name": "demo", "nodes": {**first.recipe_document["nodes"]}}  # type: ignore[dict-item]
    document["nodes"]["plan"] = {
        **document["nodes"]["plan"],
        "spec": {"step": "allocate", "budget": {"bits_per_weight": 3.0}},
    }
    other = first.allocation[2].model_copy(update={"format": "int6-g32", "bytes": first.allocation[2].bytes + 7})
    nodes = tuple(
        n.model_copy(update={"outputs": {"documents": digest("new text")}}) if n.id == "calibration_text" else n
        for n in first.nodes
    )
    second = first.model_copy(
        update={
            "recipe_document": document,
            "nodes": nodes,
            "allocation": (*first.allocation[:2], other, *first.allocation[3:]),
        }
    )
    found = compare(first, second)
    assert found.inputs == ("the calibration text changed: calibrate.jsonl has other content",)
    assert [(c.name, c.first, c.second) for c in found.recipe] == [("plan.budget.bits_per_weight", 3.26, 3.0)]
    assert [(m.unit, m.bytes) for m in found.units] == [(other.unit, 7)]
    assert found.nodes == ("calibration_text",) and not found.libraries
    del document["nodes"]["tokens"]
    without = compare(second, second.model_copy(update={"recipe_document": {"name": "demo", "nodes": {}}}))
    assert [(c.name, c.first, c.second) for c in without.recipe if c.name == "plan"] == [("plan", "allocate", None)]
    assert compare(first, first) == compare(second, second)
