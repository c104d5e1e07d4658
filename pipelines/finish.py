"""What follows the last node: export the packed folder, write the report, log it, record the build."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from pipelines.assemble import Run, assemble
from pipelines.build import Build
from pipelines.drive import Built
from pipelines.plots import draw
from pipelines.run import Runner
from schemas.report import Report
from store.lineage import Input, log_build


class GateFailure(Exception):
    """A finished build whose gates did not all pass; holds its report."""

    def __init__(self, report: Report) -> None:
        self.report = report
        failed = ", ".join(f"{g.name} (limit {g.limit}, got {g.value})" for g in report.gates if not g.passed)
        super().__init__(f"gates failed: {failed}")


def finish(build: Build, built: Built, flow_run: str | None, seconds: float) -> Report:
    """Export, report, log and record a build whose nodes are all done."""
    runner = build.runner
    draft = assemble(runner, built, Run(seconds, "", None, flow_run))
    folder = build.where.builds / f"{runner.recipe.name}-{draft.packed.digest[:12]}"
    if not folder.exists():
        runner.store.artifacts.export(draft.packed.digest, folder)
    run = Run(seconds, str(folder), None, flow_run)
    report = assemble(runner, built, run)
    report = assemble(runner, built, replace(run, mlflow_run_id=_log(build, built, report)))
    runner.store.builds.save(report.build_digest, report.model_dump(mode="json"))
    return report


def _log(build: Build, built: Built, report: Report) -> str:
    runner = build.runner
    document: Any = (build.short or build.recipe).model_dump(mode="json")
    with tempfile.TemporaryDirectory(prefix="bitsmith-plots-") as folder:
        plots = draw(report, Path(folder), scores=_scores(runner, built))
        return log_build(
            build.where.tracking,
            runner.recipe.name,
            report,
            yaml.safe_dump(document, sort_keys=False),
            _inputs(runner, built),
            plots,
            register_as=runner.recipe.name,
        )


def _inputs(runner: Runner, built: Built) -> list[Input]:
    """Everything that came from outside, and the token windows made of it."""
    rows = []
    for bound in runner.bound:
        spec: Any = bound.node.spec
        if bound.step is None:
            rows.append(Input(bound.id, next(iter(built.outputs[bound.id].values())), spec.source, spec.step))
        elif spec.step == "tokenize":
            rows.append(Input(bound.id, built.outputs[bound.id]["tokens"], bound.inputs["text"][0], "tokens"))
    return rows


def _scores(runner: Runner, built: Built) -> dict[str, dict[str, float]]:
    """Score of every (unit, format), for the sensitivity plot."""
    table: dict[str, dict[str, float]] = {}
    for bound in runner.bound:
        if bound.step is not None and "scores" in bound.step.outputs:
            value = runner.store.artifacts.load(built.outputs[bound.id]["scores"])
            for child in value.children.values():
                table.setdefault(child.meta["unit"], {})[child.meta["format"]] = child.meta["score"]
    return table
