"""The cost table behind a build's plan, from the store."""

from __future__ import annotations

import json
from typing import Any

from schemas.report import Report
from store.errors import Unavailable
from store.open import Store
from store.records import read_files
from ui.figures.sensitivity import Scores


def scores_of(store: Store, report: Report) -> Scores | None:
    """unit -> format -> score in nats per token; None when it is no longer in the store."""
    nodes: Any = report.recipe_document.get("nodes", {})
    edge = next(
        (n["inputs"].get("scores") for n in nodes.values() if n.get("spec", {}).get("step") == "allocate"), None
    )
    row = next((row for row in report.nodes if edge and row.id == edge.partition(".")[0]), None)
    if row is None or "scores" not in row.outputs:
        return None
    table: dict[str, dict[str, float]] = {}
    try:
        children = store.artifacts.load(row.outputs["scores"]).children
        manifests = store.artifacts.manifests
        for _, data in read_files(store.folder, [manifests.path(digest) for digest in children.digests.values()]):
            meta = json.loads(data)["meta"]
            if isinstance(meta.get("score"), int | float):
                table.setdefault(str(meta["unit"]), {})[str(meta["format"])] = float(meta["score"])
    except (Unavailable, ValueError, KeyError):
        return None
    return table or None
