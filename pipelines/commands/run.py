"""`bitsmith run`: from traces alone when everything is cached, else through Prefect."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from pipelines.build import Build, from_traces, prepare
from pipelines.distribution import Distribution
from pipelines.preflight import check
from pipelines.recipe_file import parse_assignment
from pipelines.settings import prefect_environment, settings
from pipelines.show import show_report
from pipelines.temporary_server import end_with_us
from schemas.errors import InputError
from schemas.report import Report
from store.lineage import check_tracking

PATIENCE = 20
"""Seconds for a server that listens but is busy: on two cores under load, 3 were not enough."""


def run(options: argparse.Namespace) -> int:
    """Build a recipe; 0 when its gates pass, else 1."""
    started = time.perf_counter()
    where = settings(options.store, options.tracking)
    build = prepare(options.recipe, [parse_assignment(a) for a in options.set], where, options.device)
    report = from_traces(build, started)
    if report is None:
        api = os.environ.get("PREFECT_API_URL") or where.prefect_api
        Distribution(options.runner, options.scheduler, options.workers).check(api)
        check_tracking(where.tracking)
        tell(check(build, here=options.scheduler is None).notes)
        report = _through_prefect(options, build)
    else:
        print("every node is cached; nothing was computed", file=sys.stderr)
    if options.json is not None:
        write_json(options.json, report.model_dump(mode="json"))
    show_report(report)
    return 0 if report.passed else 1


def tell(notes: Iterable[str]) -> None:
    """What a user should know before the work begins."""
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def _through_prefect(options: argparse.Namespace, build: Build) -> Report:
    prefect_environment(build.where)
    check_prefect(build.where.prefect_api)
    from pipelines.finish import GateFailure
    from pipelines.flow import compress

    leave_the_last_word_to_the_command()
    end_with_us()
    assignments = dict(parse_assignment(a) for a in options.set)
    try:
        return Report.model_validate(
            compress(
                options.recipe,
                assignments,
                build.where.store,
                build.where.tracking,
                options.device,
                options.runner,
                options.scheduler,
                options.workers,
            )
        )
    except GateFailure as failure:
        return failure.report


def leave_the_last_word_to_the_command() -> None:
    """Keep what Prefect logs about failed and interrupted runs off the console: whoever catches the error says it.

    The Prefect server still gets these records.
    """
    for handler in (*logging.getLogger().handlers, *logging.getLogger("prefect").handlers):
        handler.addFilter(lambda record: not record.name.startswith(("prefect.flow_runs", "prefect.task_runs")))


def write_json(path: Path, document: object) -> None:
    """Write a JSON file, making its folder."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", "utf-8")
    except OSError as error:
        raise InputError(
            "cannot write the report", where=str(path), got=error, fix="choose another --json FILE"
        ) from error


def check_prefect(started: str | None) -> None:
    """Raise InputError when a Prefect server is configured and does not answer: at once where nothing listens."""
    import urllib.error
    import urllib.request

    url = os.environ.get("PREFECT_API_URL") or started
    if not url:
        return
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=PATIENCE):
            return
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise InputError(
            "the Prefect server does not answer",
            where=url,
            got=error,
            fix="start it (`bitsmith up`), or unset PREFECT_API_URL to run without a server",
        ) from error
