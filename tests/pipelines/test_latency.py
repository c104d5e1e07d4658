"""The latency command measures what a recipe needs, a recipe takes the table, and gaps and bad tables are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from builds import open_build, run_build, write_recipe

from pipelines.cli import main
from pipelines.preflight import check
from pipelines.recipe_file import load_recipe
from schemas.errors import InputError
from schemas.recipe import ShortRecipe
from schemas.timings import TimingTable

QUICK = ["--seconds", "0.001"]


def measured(folder: Path, *extra: str, **changes: Any) -> Path:
    """The table of the tiny recipe, in `folder`."""
    recipe = write_recipe(folder, **changes)
    store = ["--store", str(folder / "state" / "store")]
    assert main(["latency", str(recipe), "--json", str(folder / "timings.json"), *store, *QUICK, *extra]) == 0
    return folder / "timings.json"


def test_a_recipe_is_measured_and_built_within_the_latency_it_asks_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"pack": "bitsmith", "embeddings": "int8-g64", "distill": None}
    path = measured(tmp_path, **changes)
    assert "PackedLinear on cpu, bfloat16, 1 token(s) at once" in capsys.readouterr().out
    table = TimingTable.model_validate_json(path.read_text())
    assert (300, 64) in {t.shape for t in table.timings} and (128, 64) in {t.shape for t in table.timings}
    assert {t.format.name for t in table.timings if t.shape == (300, 64)} == {"int8-g64"}
    # Made-up times, so that the limit is known to bind: eight bits are slow.
    rows = [t.model_dump(mode="json") | {"microseconds": 10.0 * t.format.bits} for t in table.timings]
    path.write_text(json.dumps(table.model_dump(mode="json") | {"timings": rows}))
    budget = {"bits_per_weight": 8.2, "latency": {"microseconds": 14 * 40.0 + 80.0, "table": "timings.json"}}
    build = open_build(tmp_path, budget=budget, **changes)
    check(build)
    meta = build.runner.store.artifacts.load(run_build(build).outputs["plan"]["plan"]).meta
    binding = [limit for limit in meta["certificate"]["limits"] if limit["name"] == "latency"]
    assert binding[0]["binds"] and binding[0]["used"] <= binding[0]["limit"] == 640.0
    bits = [
        int(fmt[3])
        for unit, fmt in meta["plan"].items()
        for _ in range(3 if "qkv" in unit else 2 if "up" in unit else 1)
    ]
    assert binding[0]["used"] == 10.0 * sum(bits)


@pytest.mark.parametrize("name", ["baq2.5-g64", "int2+4-g64@2.5"])
def test_a_format_of_several_widths_is_timed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The widths of a matrix are not stored row by row; this one has more rows than are really quantized."""
    assert main(["latency", "--shapes", "64x64", "--formats", name, "--dtype", "float32", *QUICK]) == 0
    assert "64x64" in capsys.readouterr().out


def test_a_table_with_a_gap_is_refused_before_anything_runs(tmp_path: Path) -> None:
    path = measured(tmp_path)
    table = json.loads(path.read_text())
    assert table["engine"] == "Linear"  # compressed-tensors unpacks on loading
    table["timings"] = [t for t in table["timings"] if t["shape"] != [64, 128]]
    path.write_text(yaml.safe_dump(table))
    build = open_build(tmp_path, budget={"latency": {"microseconds": 1e9, "table": str(path)}})
    with pytest.raises(InputError, match=r"(?s)has gaps.*4 missing: 64x128 in int2-g32.*bitsmith latency"):
        check(build)


@pytest.mark.parametrize(
    ("content", "latency", "message"),
    [
        (None, {}, r"no such timing table(?s:.*)bitsmith latency"),
        ("{}", {}, r"not a timing table(?s:.*)device(?s:.*)Field required"),
        ("- 1", {}, "a recipe is a mapping"),
        ("{}", {"timings": []}, "either timings or a table"),
    ],
)
def test_unusable_tables_are_refused(tmp_path: Path, content: str | None, latency: Any, message: str) -> None:
    if content is not None:
        (tmp_path / "t.yaml").write_text(content)
    recipe = write_recipe(tmp_path, budget={"latency": {"microseconds": 1, "table": "t.yaml", **latency}})
    with pytest.raises(InputError, match=message):
        load_recipe(str(recipe))


def test_shapes_and_formats_without_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.json"
    shapes = ["latency", "--shapes", "64x32,32x64", "--formats", "int3-g32,int8-row", "--tokens", "3", *QUICK]
    assert main([*shapes, "--json", str(path)]) == 0
    table = TimingTable.model_validate_json(path.read_text())
    assert table.tokens == 3 and [t.shape for t in table.timings] == [(64, 32), (64, 32), (32, 64), (32, 64)]
    assert all(t.microseconds > 0 and t.samples >= 7 for t in table.timings)
    (tmp_path / "r.yaml").write_text(
        yaml.safe_dump(
            {"name": "r", "model": {"source": "m"}, "formats": ["int3-g32"]}
            | {"budget": {"latency": {"microseconds": 5, "table": "t.json"}}}
        )
    )
    recipe = load_recipe(str(tmp_path / "r.yaml"))
    assert isinstance(recipe, ShortRecipe) and recipe.budget.latency is not None
    assert recipe.budget.latency.timings == tuple(t.timing() for t in table.timings)
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a recipe, or --shapes"),
        (["demo", "--shapes", "1x1"], "give a recipe, or --shapes"),
        (["--shapes", "64x32"], "--shapes needs --formats"),
        (["--shapes", "64", "--formats", "int4-g32"], "not a shape"),
        (["--shapes", "64x32", "--formats", "int9"], "not a format"),
        (["--shapes", "64x48", "--formats", "int4-g32"], "48 weights per row"),
    ],
)
def test_bad_questions(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["latency", *arguments, *QUICK]) == 2
    assert message in capsys.readouterr().err
