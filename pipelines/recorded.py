"""A recorded build opened again: its recipe on its store, and the outputs that its nodes had."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines.build import read_report
from pipelines.graph import Bound
from pipelines.items import Item, independent_items
from pipelines.run import Place, Runner
from schemas.artifact import item_name
from schemas.errors import InputError
from schemas.pack import Pack
from schemas.recipe import Recipe
from schemas.report import Report
from store.builds import Build
from store.open import Store


@dataclass(frozen=True)
class Recorded:
    """`outputs` maps nodes to the digests of their output ports, as when the build was made."""

    report: Report
    runner: Runner
    outputs: dict[str, dict[str, str]]

    @property
    def packer(self) -> Bound:
        """The node that wrote the packed folder."""
        packed = self.report.packed.digest
        return next(
            b
            for b in self.runner.bound
            if isinstance(b.node.spec, Pack) and packed in self.outputs.get(b.id, {}).values()
        )

    def chosen(self) -> dict[str, tuple[Item, str]]:
        """The packed units before any training: name -> the call that makes it, and the digest that was recorded."""
        select = self.packer
        while "candidates" not in select.inputs:
            select = self.runner.by_id[select.inputs["selection"][0]]
        quantize = self.runner.by_id[select.inputs["candidates"][0]]
        self.check_model(quantize)
        selection = self.runner.store.artifacts.load(self.outputs[select.id]["selection"])
        plan, digests = selection.meta["plan"], selection.children.digests
        items = independent_items(quantize, self.runner.handles(quantize, self.outputs))
        by_label = {item.place.label: item for item in items}
        return {unit: (by_label[item_name(unit, fmt)], digests[unit]) for unit, fmt in plan.items()}

    def check_model(self, reader: Bound) -> None:
        """InputError when the model that a node reads is no longer the one that was built from."""
        node, port = reader.inputs["model"]
        source: Any = self.runner.by_id[node].node.spec
        now, then = self.runner.source(node).digest, self.outputs[node][port]
        if now != then:
            raise InputError(
                "the model is not the one that was built from",
                where=source.source,
                got=now,
                wanted=then,
                fix="put the original model back in its place",
            )


def reopen(build: Build, store: Store, place: Place) -> Recorded:
    """InputError when the record was written by another version of Bitsmith."""
    report = read_report(build.report)
    if report is None:
        raise InputError(
            "the build's record was written by another version of Bitsmith",
            where=f"build {build.digest[:12]}",
            fix="run its recipe again; what is cached is not computed",
        )
    runner = Runner(Recipe.model_validate(report.recipe_document), store, place)
    return Recorded(report, runner, {row.id: dict(row.outputs) for row in report.nodes})
