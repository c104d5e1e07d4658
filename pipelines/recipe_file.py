"""Read a recipe: YAML, overrides, validation; every fault is one InputError that names the field and what it may be."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipelines.plan_file import with_plan
from pipelines.recipe_faults import explain
from pipelines.timing_file import with_timings
from schemas.errors import InputError
from schemas.recipe import Recipe, ShortRecipe

MAX_RECIPE_BYTES = 1_000_000
SHIPPED = Path(__file__).with_name("recipes")


class _Loader(yaml.SafeLoader):
    """Safe YAML without aliases (they can expand without bound), duplicate keys (the last would win), and dates."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in found if not tag.endswith(":timestamp")]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.YAMLError(f"aliases are not allowed in a recipe (line {event.start_mark.line + 1})")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value
            if key in seen:
                raise yaml.YAMLError(f"field {key!r} is given twice (line {key_node.start_mark.line + 1})")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _load(text: str) -> Any:
    """What JSON could say; TypeError, ValueError or YAMLError for anything else."""
    data = yaml.load(text, Loader=_Loader)
    json.dumps(data)
    return data


def find_recipe(name: str) -> Path:
    """A recipe by path, or by the name of one that is shipped."""
    for path in (Path(name), SHIPPED / Path(name).name, SHIPPED / f"{name}.yaml"):
        if path.is_file():
            return path
    shipped = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.yaml")))
    raise InputError("no such recipe", where=name, wanted=f"a YAML file, or one of {shipped}", fix="check the path")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file."""
    if path.stat().st_size > MAX_RECIPE_BYTES:
        raise InputError(
            "recipe is too large", where=str(path), got=path.stat().st_size, wanted=f"<= {MAX_RECIPE_BYTES}"
        )
    try:
        data = _load(path.read_text("utf-8"))
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise InputError("recipe is not readable YAML", where=str(path), got=" ".join(str(error).split())) from error
    if not isinstance(data, dict):
        raise InputError("a recipe is a mapping", where=str(path), got=type(data).__name__, wanted="fields with values")
    return data


def parse_assignment(text: str) -> tuple[str, Any]:
    """`a.b=value` -> (`a.b`, value read as YAML)."""
    path, separator, raw = text.partition("=")
    if not separator or not path:
        raise InputError("cannot read an override", where=f"--set {text}", wanted="FIELD.PATH=VALUE")
    try:
        return path, _load(raw)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise InputError("cannot read the value of an override", where=f"--set {text}", got=str(error)) from error


def override(data: dict[str, Any], assignments: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A copy of `data` with dotted paths set; numbers index lists."""
    result: dict[str, Any] = json.loads(json.dumps(data))
    for path, value in assignments:
        here: Any = result
        *parents, last = path.split(".")
        for part in parents:
            here = here[_index(here, part, path)] if isinstance(here, list) else here.setdefault(part, {})
            if not isinstance(here, dict | list):
                raise InputError("an override goes through a value", where=f"--set {path}", got=f"{part} = {here!r}")
        if isinstance(here, list):
            here[_index(here, last, path)] = value
        else:
            here[last] = value
    return result


def _index(items: list[Any], part: str, path: str) -> int:
    if not part.isdecimal() or int(part) >= len(items):
        raise InputError("no such list element", where=f"--set {path}", got=part, wanted=f"0 to {len(items) - 1}")
    return int(part)


def load_recipe(name: str, assignments: Iterable[tuple[str, Any]] = ()) -> ShortRecipe | Recipe:
    """The validated recipe in either form (the explicit form has `nodes`)."""
    path = find_recipe(name)
    data = with_plan(with_timings(override(read_yaml(path), assignments), path.parent, read_yaml))
    return parse_recipe(data, str(path))


def parse_recipe(data: dict[str, Any], where: str) -> ShortRecipe | Recipe:
    """Validate a recipe in either form."""
    model: type[Recipe] | type[ShortRecipe] = Recipe if "nodes" in data else ShortRecipe
    try:
        return model.model_validate(data)
    except ValidationError as error:
        faults = explain(error, model, data)
        got = "".join(f"\n    {line}" for line in faults)
        raise InputError(f"recipe has {len(faults)} fault(s)", where=where, got=got, fix="mend these fields") from error
