"""A recorded build's recipe as YAML that `bitsmith run` accepts, as it was or with another budget and more pins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from schemas.allocate import Allocate
from schemas.budget import Budget
from schemas.quantize import Quantize
from schemas.recipe import Recipe, ShortRecipe
from schemas.report import Report


def asked_recipe(report: Report, budget: Budget | None = None, pins: Mapping[str, str] | None = None) -> str:
    """The short form if the build was asked for in it, else the explicit one. `pins` maps units to formats.

    Everything before the allocation stays as it was, so a build of it quantizes nothing again.
    """
    more = [{"units": unit, "formats": [name]} for unit, name in (pins or {}).items()]
    if report.asked is not None and "nodes" not in report.asked:
        short = ShortRecipe.model_validate(report.asked)
        fields = {**short.model_dump(mode="json", exclude_defaults=True), "formats": [f.name for f in short.formats]}
        return _yaml(_changed(fields, budget, more))
    recipe = Recipe.model_validate(report.recipe_document)
    nodes: dict[str, Any] = {}
    for name, node in recipe.nodes.items():
        fields = node.spec.model_dump(mode="json", exclude_defaults=True)
        if isinstance(node.spec, Quantize):
            fields["formats"] = [f.name for f in node.spec.formats]
        allocates = isinstance(node.spec, Allocate)
        nodes[name] = {**(_changed(fields, budget, more) if allocates else fields), "inputs": dict(node.inputs)}
    return _yaml({"name": recipe.name, "nodes": nodes})


def _changed(fields: Mapping[str, Any], budget: Budget | None, pins: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Fields of a short recipe, or of an allocate node, with another budget and more pins."""
    changed = dict(fields)
    if budget is not None:
        changed["budget"] = budget.model_dump(mode="json", exclude_defaults=True)
    if pins:
        changed["pins"] = [*fields.get("pins", ()), *pins]
    return changed


def _yaml(document: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(document), sort_keys=False, default_flow_style=None, width=88, allow_unicode=True)
