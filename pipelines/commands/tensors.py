"""The original tensors behind quantized units, with their digests if the model is still what was built from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.build import read_report
from pipelines.items import Place, part
from pipelines.sources import open_source_model
from schemas.artifact import Unit, unit_name
from schemas.calibrate import ModelSource
from schemas.errors import InputError
from schemas.recipe import Recipe
from steps.model.structure import find_units
from store.builds import Build
from store.traces import Trace


class Weights:
    """Opens the model when it is first asked, and digests no more tensors than it names."""

    def __init__(self, source: ModelSource | None, cache: Path) -> None:
        self.source, self.cache = source, cache

    @classmethod
    def of(cls, build: Build | None, cache: Path) -> Weights:
        """The model of a build; of no build, nothing can be said."""
        report = read_report(build.report) if build is not None else None
        if report is None:
            return cls(None, cache)
        recipe = Recipe.model_validate(report.recipe_document)
        return cls(next(n.spec for n in recipe.nodes.values() if isinstance(n.spec, ModelSource)), cache)

    def lines(self, made: list[tuple[str, Trace]], limit: int) -> Iterator[str]:
        """`name digest` of the first tensors that these quantized items (`unit/format`, trace) were made from."""
        if self.source is None:
            return
        try:
            model = open_source_model(self.source, self.cache)
            keys = {unit_name(name): trace.document["inputs"].get("model") for name, trace in made}
            asked = [(u, keys[u.name]) for u in find_units(model.meta["config"], model.meta["shapes"], keys)]
        except InputError as error:
            yield f"the model is not at hand: {error.what}"
            return
        total, shown = sum(len(unit.members) for unit, _ in asked), 0
        for unit, key in asked:
            if shown < limit:
                yield from self._unit(model, unit, key, limit - shown)
                shown += min(len(unit.members), limit - shown)
        if total > shown:
            yield f"{total} tensors in all"

    def _unit(self, model: Any, unit: Unit, wanted: str | None, limit: int) -> Iterator[str]:
        names = [f"{member}.weight" for member in unit.members][:limit]
        if part(model, "unit", Place(unit.name, unit.block, unit)).digest != wanted:
            yield from (f"{name}: another one than was built from" for name in names)
            return
        digests = model.tensor_digests.digests(names)
        yield from (f"{name} {digests[name][:12]}" for name in names)
