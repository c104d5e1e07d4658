"""`bitsmith plan`: pre-flight, then which nodes are cached and which would run, and the certificate if it is known."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from pipelines.build import Build, prepare
from pipelines.commands.explain import changes
from pipelines.commands.run import write_json
from pipelines.drive import Outputs, states
from pipelines.preflight import Forecast, check
from pipelines.recipe_file import parse_assignment
from pipelines.settings import settings
from pipelines.show import certificate_lines, show_plan


def plan(options: argparse.Namespace) -> int:
    """Print, and with --json write, what `run` would do."""
    where = settings(options.store, options.tracking)
    build = prepare(options.recipe, [parse_assignment(a) for a in options.set], where)
    forecast = check(build)
    rows, outputs = node_rows(build)
    document: dict[str, Any] = {
        "recipe": build.recipe.name,
        "nodes": rows,
        "why": changes(build),
        "forecast": vars(forecast),
        "allocation": allocation(build, outputs),
    }
    if options.json is not None:
        write_json(options.json, document)
    show_plan(rows, title=f"recipe {build.recipe.name}")
    for node, reasons in document["why"].items():
        print(f"{node} runs again: {'; '.join(reasons)}")
    print("\n".join(_sentences(forecast)))
    if document["allocation"] is not None:
        print("\n".join(_certificate(document["allocation"])))
    return 0


def node_rows(build: Build) -> tuple[list[dict[str, object]], Outputs]:
    """Per node: cached, to run, or not known before its inputs exist; and the outputs that are known."""
    rows: list[dict[str, object]] = []
    outputs: Outputs = {}
    for bound, state in states(build.runner):
        row: dict[str, object] = {"node": bound.id, "step": bound.node.spec.step}
        if state is None:
            rows.append({**row, "state": "after its inputs", "cached": "", "to run": ""})
            continue
        if state.combined is not None:
            outputs[bound.id] = state.combined
        pending = len(state.pending)
        word = "source" if bound.step is None else "runs" if pending else "cached"
        rows.append({**row, "state": word, "cached": state.total - pending, "to run": pending})
    return rows, outputs


def allocation(build: Build, outputs: Outputs) -> Mapping[str, Any] | None:
    """The plan, of two rounds the one that is kept, if it is cached."""
    plans = [b for b in build.runner.bound if b.step is not None and "plan" in b.step.outputs]
    if not plans or plans[-1].id not in outputs:
        return None
    return dict(build.runner.store.artifacts.load(outputs[plans[-1].id]["plan"]).meta)


def _sentences(forecast: Forecast) -> list[str]:
    def size(count: int | None) -> str:
        return "unknown" if count is None else f"{count / 1e6:,.1f} MB"

    return [
        "plans reach {:.4f} to {:.4f} bits per weight over the linears, {:.4f} to {:.4f} over the file".format(
            *forecast.linear_bits_per_weight, *forecast.file_bits_per_weight
        ),
        f"packed file: {size(forecast.packed_bytes[0])} to {size(forecast.packed_bytes[1])}",
        f"store: about {size(forecast.disk_needed)} needed, {size(forecast.disk_free)} free",
        f"scratch: about {size(forecast.scratch_needed)} needed, {size(forecast.scratch_free)} free",
        f"memory: at least {size(forecast.memory_needed)} needed, {size(forecast.memory_free)} free",
        *forecast.notes,
    ]


def _certificate(meta: Mapping[str, Any]) -> list[str]:
    predicted = ", ".join(f"{k} {v:.5g}" for k, v in meta["predicted_kl"].items() if v is not None)
    return [f"predicted KL: {predicted}", *certificate_lines(meta["certificate"])]
