"""What follows the last node: export the packed folder, write the report, log it, record the build."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import yaml

from pipelines.assemble import Run, assemble
from pipelines.build import Build
from pipelines.delivery import deliver_others, export, write_notes
from pipelines.drive import Built
from pipelines.page import Page
from pipelines.plots import draw
from pipelines.run import Runner
from pipelines.standing import judge
from schemas.report import Report
from store.lineage import Input, log_build


class GateFailure(Exception):
    """A finished build whose gates did not all pass; holds its report."""

    def __init__(self, report: Report) -> None:
        self.report = report
        failed = ", ".join(f"{g.name} (limit {g.limit}, got {g.value})" for g in report.gates if not g.passed)
        super().__init__(f"gates failed: {failed}")


def check_gates(report: Report) -> Report:
    """The report; GateFailure when a gate of it did not pass, now or when it was recorded."""
    if not report.passed:
        raise GateFailure(report)
    return report


def finish(build: Build, built: Built, flow_run: str | None, seconds: float) -> Report:
    """Export, report, judge, log and record a build whose nodes are all done."""
    runner, builds = build.runner, build.runner.store.builds
    draft = assemble(runner, built, Run(seconds, "", None, flow_run))
    folder = export(build, draft.packed.digest)
    report = assemble(runner, built, Run(seconds, str(folder), None, flow_run))
    asked = (build.short or build.recipe).model_dump(mode="json", exclude_defaults=True)
    also = deliver_others(build, built)
    passed = report.passed and all(each.passed for each in also)
    report = report.model_copy(update={"asked": asked, "also": also, "passed": passed})
    write_notes(report)
    # One at a time per recipe: two builds that end together must not both be judged against the champion before them.
    with runner.store.leases.hold(f"champions/{report.recipe}"):
        report = report.model_copy(update={"standing": judge(report, runner.store)})
        page = Page(_page_path(build, report), runner.store.url)
        report = report.model_copy(update={"mlflow_run_id": _log(build, built, report, page)})
        report = page.beside(report)
        builds.save(report.build_digest, report.model_dump(mode="json"))
        if report.standing is not None and report.standing.champion:
            builds.crown(report.recipe, report.build_digest)
    return report


def _page_path(build: Build, report: Report) -> Path:
    return build.where.state / "reports" / f"{report.recipe}-{report.build_digest[:12]}.html"


def _log(build: Build, built: Built, report: Report, page: Page) -> str:
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
            page=page.draw,
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
        if bound.step is not None and "scores" in bound.step.outputs and bound.node.spec.step != "rescore":
            value = runner.store.artifacts.load(built.outputs[bound.id]["scores"])
            for child in value.children.values():
                table.setdefault(child.meta["unit"], {})[child.meta["format"]] = child.meta["score"]
    return table
