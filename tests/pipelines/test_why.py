"""Why nodes run again: what `explain` and `plan` say after something changed."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from builds import open_build, run_build, write_recipe, write_text

from pipelines.cli import main
from pipelines.commands.explain import changes, explanations
from pipelines.items import independent_items


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "first"
    run_build(open_build(folder))
    return folder


@pytest.fixture
def copy(base: Path, tmp_path: Path) -> Path:
    """The folder of a finished build, under another path."""
    return Path(shutil.copytree(base, tmp_path / "elsewhere"))


def test_explain_names_the_field_that_changed(copy: Path) -> None:
    build = open_build(copy, rounding={"fit": {"kind": "clip"}, "solver": {"kind": "feedback", "damping": 0.05}})
    lines = dict(explanations(build))
    assert lines["statistics"][0].startswith("cached")
    assert lines["candidates"][:2] == [
        "32 of 32 items have to run",
        "layers.0.self_attn.qkv/int2-g32: spec.rounding.solver.damping: 0.01 -> 0.05",
    ]
    assert lines["plan"][0].startswith("waits for")
    assert changes(build) == {"candidates": ["spec.rounding.solver.damping: 0.01 -> 0.05"]}


def test_explain_names_the_node_that_gives_something_else(copy: Path) -> None:
    def digest_of_tokens() -> str:
        build = open_build(copy)
        return run_build(build).outputs["calibration"]["tokens"][:12]

    before = digest_of_tokens()
    write_text(copy / "calibrate.jsonl", 12, 98)
    (reason,) = changes(open_build(copy))["calibration"]
    assert re.fullmatch(r"calibration_text text: [0-9a-f]{12}\.\.\. -> [0-9a-f]{12}\.\.\.", reason)
    build = open_build(copy)
    build.runner.bound[:] = [b for b in build.runner.bound if b.id in ("model", "calibration_text", "calibration")]
    after = run_build(build).outputs["calibration"]["tokens"][:12]
    build = open_build(copy)
    assert changes(build)["statistics"] == [f"calibration tokens: {before}... -> {after}..."]
    told = dict(explanations(build))
    assert told["evaluation"][0].startswith("cached") and told["reference"][0].startswith("cached")


def test_explain_names_the_file_and_the_library_that_changed(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if one file that the quantize step imports, two files away from it, had been edited, and torch updated."""
    from pipelines import code_id, items
    from pipelines.commands import explain

    real, edited = code_id.module_digests, "steps.quantize.fits.clip"
    module = "steps.quantize.unit"
    monkeypatch.setattr(items, "code_of", lambda m: "dirty:" + "ab" * 32 if m == module else code_id.code_of(m))
    monkeypatch.setattr(explain, "module_digests", lambda m: {**real(m), edited: "x"} if m == module else real(m))
    assert changes(open_build(copy)) == {"candidates": ["code of steps/quantize/fits: clip.py changed"]}
    monkeypatch.setattr(explain, "module_digests", real)
    (told,) = changes(open_build(copy))["candidates"]
    assert re.fullmatch(r"code of steps/quantize/unit\.py: (v\d+|dirty:[0-9a-f]{8}) -> dirty:abababab", told)
    monkeypatch.undo()
    version = items.library_version
    monkeypatch.setattr(items, "library_version", lambda name: "9.9" if name == "torch" else version(name))
    told = changes(open_build(copy))["statistics"]
    assert told == [f"libraries.torch: {version('torch')} -> 9.9"]


def test_plan_says_why_before_anything_runs(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BITSMITH_HOME", str(copy / "state"))
    recipe, out = write_recipe(copy), copy / "plan.json"
    assert main(["plan", str(recipe), "--set", "distill.batch=1", "--json", str(out)]) == 0
    shown = capsys.readouterr().out
    why = json.loads(out.read_text())["why"]
    assert list(why) == ["distilled"] and why["distilled"][0].endswith("batch: 2 -> 1")
    assert f"distilled runs again: {why['distilled'][0]}" in shown


def test_every_field_of_a_candidate_spec_changes_its_key(copy: Path) -> None:
    def keys(**changes: Any) -> set[str]:
        build = open_build(copy, **changes)
        built = run_build(build) if not changes else None
        bound = build.runner.by_id["candidates"]
        outputs = built.outputs if built else run_build(open_build(copy)).outputs
        return {i.key for i in independent_items(bound, build.runner.handles(bound, outputs))}

    plain = keys()
    for solver in ({"damping": 0.02}, {"act_order": False}, {"block_size": 64}, {"retries": 1}):
        assert not plain & keys(rounding={"solver": {"kind": "feedback", **solver}})
