"""Recipes: both forms parse, faults are one clear error each."""

from pathlib import Path

import pytest
import yaml

from pipelines.expand import expand
from pipelines.graph import bind
from pipelines.recipe_file import SHIPPED, find_recipe, load_recipe, override, parse_assignment, parse_recipe
from schemas.errors import InputError
from schemas.quantize import Quantize
from schemas.recipe import Recipe, ShortRecipe


def demo() -> ShortRecipe:
    loaded = load_recipe("demo")
    assert isinstance(loaded, ShortRecipe)
    return loaded


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_recipe_parses_and_its_edges_type_check(path: Path) -> None:
    short = load_recipe(str(path))
    assert isinstance(short, ShortRecipe)
    order = [b.id for b in bind(expand(short))]
    assert order.index("statistics") < order.index("candidates") < order.index("plan") < order.index("verdict")


def test_the_explicit_form_round_trips_through_yaml() -> None:
    explicit = expand(demo())
    flat = {name: {**node.spec.model_dump(mode="json"), "inputs": node.inputs} for name, node in explicit.nodes.items()}
    text = yaml.safe_dump({"name": explicit.name, "nodes": flat})
    assert parse_recipe(yaml.safe_load(text), "here") == explicit


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("budgt=1", ["budgt: unknown field", "did you mean 'budget'"]),
        ("distill.tokenz=3", ["distill.tokenz", "did you mean 'tokens'"]),
        ("formats=[int9-g64]", ["unknown format 'int9-g64'", "int<2|3|4|5|6|8>"]),
        ("formats=[int4-g64, int4-g64]", ["listed twice"]),
        ("method=gtpq", ["method", "'gptq', 'rtn', 'autoround'", "did you mean 'gptq'"]),
        ("distill.method=autorond", ["distill.method", "'latent', 'scales'", "did you mean 'autoround'"]),
        ("distill.scope=blokcs", ["distill.scope", "'whole', 'blocks', 'stream'", "did you mean 'blocks'"]),
        ("distill.scope={kind: blocks, stride: 2}", ["distill.scope: stride 2 beyond width 1"]),
        ("distill.codes={kind: bx}", ["distill.codes", "'ste', 'box', 'annealed', 'offsets'", "did you mean 'box'"]),
        ("distill.objective=[{kind: logit}]", ["distill.objective.0", "did you mean 'logits'"]),
        ("distill.schedule={shape: cosinus}", ["distill.schedule.shape", "'cosine', 'linear' or 'constant'"]),
        ("distill.optimizer={kind: sgd}", ["distill.optimizer", "'adam', 'sign'"]),
        ("allocator.kind=ipl", ["unknown kind 'ipl'", "did you mean 'ilp'"]),
        ("budget={}", ["at least one of bits_per_weight"]),
        ("budget.bits_per_weight=.nan", ["budget.bits_per_weight", "finite"]),
        ("name=../../etc", ["name"]),
        ("name=2026-01-01", ["name: String should match"]),
        ("text.calibrate=", ["text.calibrate"]),
        ('text.evaluate=""', ["text.evaluate", "at least 1 character"]),
        ("text.seed=99999999999999999999999999", ["text.seed"]),
    ],
)
def test_faults_name_the_field_and_what_it_may_be(assignment: str, says: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        load_recipe("demo", [parse_assignment(assignment)])
    assert all(part in str(caught.value) for part in says), str(caught.value)


@pytest.mark.parametrize(
    ("assignment", "lines"),
    [
        ("embeddings=x", ["embeddings: unknown format 'x'"]),
        ("embeddings={head: x}", ["embeddings.head: unknown format 'x'"]),
        ("pack=x", ["pack: unknown 'x'"]),
        ("pack={format: x}", ["pack.format: unknown 'x'"]),
        ("pack=[bitsmith, {format: x}]", ["pack.1.format: unknown 'x'"]),
        ("formats=[int9-g64]", ["formats.0: unknown format 'int9-g64'"]),
        ("formats=[1]", ["formats.0: wanted fields with values, got 1"]),
        ("keep=a", ["keep: wanted a list, got 'a'"]),
        ("allocator={}", ["allocator: field 'kind' is missing"]),
        ("allocator={kind: uniform}", ["allocator.format: Field required"]),
        ("allocator={kind: rankcut, high: x, low: y}", ["allocator.high: unknown", "allocator.low: unknown"]),
        ("distill={recode: {passes: 0}}", ["distill.recode.passes: Input should be greater than or equal to 1"]),
        ("distill={recode: x}", ["distill.recode: Input should be a valid boolean"]),
        ("distill={rates: {codes: -1}}", ["distill.rates.codes: Input should be greater than 0, or: unknown -1"]),
        ("distill={codes: {kind: box, clamp: 0}}", ["distill.codes.clamp: Input should be"]),
        ("distill={objective: [{kind: logits, mix: 3}]}", ["distill.objective.0.mix: Input should be"]),
        ("distill={rates: {scales: 1, by_bits: {3: 2}}}", ["distill.rates: by_bits are factors on the rate of codes"]),
        ("distill={rates: {codes: 1, by_bits: {7: 2}}}", ["distill.rates.by_bits.7: unknown '7'; wanted '2', '3'"]),
        ("distill={objective: [{kind: logits, mix: 0.3}]}", ["distill.objective.0: mix is of `divergence: mixed`"]),
    ],
)
def test_a_fault_is_said_once_and_where_the_user_wrote_it(assignment: str, lines: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        load_recipe("demo", [parse_assignment(assignment)])
    got = [line.strip() for line in caught.value.got.strip().split("\n")]
    assert len(got) == len(lines) and caught.value.what == f"recipe has {len(lines)} fault(s)", got
    assert all(line.startswith(wanted) for line, wanted in zip(got, lines, strict=True)), got


def test_a_fault_in_the_explicit_form_is_where_the_user_wrote_it() -> None:
    node = {"step": "distill", "objective": [{"kind": "logits", "mix": 4}]}
    with pytest.raises(InputError, match=r"nodes\.a\.objective\.0\.mix: Input should"):
        parse_recipe({"name": "x", "nodes": {"a": node}}, "")


@pytest.mark.parametrize("key", ["3", "'3'"])
def test_bits_may_be_written_as_numbers(key: str, tmp_path: Path) -> None:
    """In a file as in an override."""
    given = f"distill.rates={{codes: 0.1, by_bits: {{{key}: 2}}}}"
    short = load_recipe("demo", [parse_assignment(given)])
    path = tmp_path / "r.yaml"
    lines = [line for line in find_recipe("demo").read_text().splitlines() if not line.startswith("distill:")]
    path.write_text("\n".join([*lines, f"distill: {{rates: {{codes: 0.1, by_bits: {{{key}: 2}}}}}}"]))
    for loaded in (short, load_recipe(str(path))):
        assert isinstance(loaded, ShortRecipe) and loaded.distill is not None and loaded.distill.rates is not None
        assert loaded.distill.rates.by_bits == {"3": 2.0}


def test_an_unknown_step_in_the_explicit_form_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match=r"did you mean 'quantize'"):
        parse_recipe({"name": "x", "nodes": {"a": {"step": "quantise"}}}, "here")


@pytest.mark.parametrize(
    "text",
    [
        "a: &x [1]\nb: *x\n",
        "a: 1\na: 2\n",
        "- 1\n",
        "a: [\n",
        "a: !!python/object/apply:os.system ['true']\n",
        "",
        "? [a, b]\n: c\n",
        "name: !!binary aGk=\n",
        "name: !!int abc\n",
        "name: " + "9" * 5000,
    ],
)
def test_hostile_or_broken_yaml_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=str(path)):
        load_recipe(str(path))


def test_an_unknown_recipe_lists_the_shipped_ones() -> None:
    with pytest.raises(InputError, match="llama-mixed"):
        find_recipe("nothing-here")


def test_override_sets_nested_fields_and_list_elements_without_touching_its_input() -> None:
    data = {"a": {"b": 1}, "c": [1, 2]}
    assert override(data, [("a.b", 2), ("c.1", 9), ("d.e", "x")]) == {"a": {"b": 2}, "c": [1, 9], "d": {"e": "x"}}
    assert data == {"a": {"b": 1}, "c": [1, 2]}
    for bad in (("a.b.c", 1), ("c.7", 1)):
        with pytest.raises(InputError):
            override(data, [bad])


@pytest.mark.parametrize("text", ["novalue", "=3", "a=[1"])
def test_unreadable_assignments_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="--set"):
        parse_assignment(text)


def _explicit(**changes: object) -> Recipe:
    explicit = expand(demo())
    nodes = {k: v for k, v in explicit.nodes.items()}
    for name, inputs in changes.items():
        nodes[name] = nodes[name].model_copy(update={"inputs": inputs})
    return Recipe(name="broken", nodes=nodes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"candidates": {"model": "model"}}, ["missing input port", "statistics"]),
        ({"candidates": {"model": "model", "statistics": "nowhere"}}, ["names no node", "nowhere"]),
        ({"candidates": {"model": "model", "statistics": "calibration"}}, ["different types", "tokens", "statistics"]),
        ({"candidates": {"model": "model", "statistics": "statistics.hidden"}}, ["no such port"]),
        ({"candidates": {"model": "model", "statistics": "statistics", "x": "model"}}, ["unknown input port", "x"]),
        ({"model": {"x": "plan"}}, ["a source takes no inputs"]),
    ],
)
def test_bad_edges_are_refused_by_name(changes: dict[str, dict[str, str]], says: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        bind(_explicit(**changes))
    assert all(part in str(caught.value) for part in says), str(caught.value)


def test_a_circle_is_refused() -> None:
    explicit = expand(demo())
    allocated = explicit.nodes["allocated"].model_copy(update={"inputs": {"candidates": "candidates", "plan": "plan"}})
    distilled = explicit.nodes["distilled"]
    circle = distilled.model_copy(update={"inputs": {**distilled.inputs, "selection": "distilled"}})
    with pytest.raises(InputError, match="circle"):
        bind(Recipe(name="x", nodes={**explicit.nodes, "allocated": allocated, "distilled": circle}))


def test_a_part_of_the_rounding_that_is_named_leaves_the_others_as_the_method_has_them() -> None:
    given = demo().model_dump(mode="json") | {"rounding": {"refits": 2}}
    plain, refitted = expand(demo()), expand(ShortRecipe.model_validate(given))
    before, after = (recipe.nodes["candidates"].spec for recipe in (plain, refitted))
    assert isinstance(before, Quantize) and isinstance(after, Quantize)
    assert after.rounding == before.rounding.model_copy(update={"refits": 2}) and before.rounding.refits is None
