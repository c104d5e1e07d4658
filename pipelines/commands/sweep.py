"""`bitsmith sweep`: one build per budget, the front of size against KL, as a table, a picture and JSON."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from pipelines.build import from_traces
from pipelines.commands.run import check_prefect, leave_the_last_word_to_the_command, tell, write_json
from pipelines.distribution import Distribution
from pipelines.drive import Built, NotCached, look_up
from pipelines.front import over_uniform, sweep_of
from pipelines.plots import draw_front
from pipelines.preflight import check
from pipelines.recipe_file import parse_assignment
from pipelines.settings import Settings, prefect_environment, settings
from pipelines.show_front import show_front
from pipelines.sweep import Asked, Comparison, Rung, comparison, rungs
from pipelines.temporary_server import end_with_us
from schemas.base import digest_of
from schemas.errors import InputError
from schemas.report import Report
from schemas.sensitivity import MetricName
from schemas.sweep import Sweep
from store.errors import Unavailable
from store.lineage import check_tracking


def sweep(options: argparse.Namespace) -> int:
    """Go through the budgets; 0 when the gates of every build pass, else 1."""
    asked, where = asked_of(options), settings(options.store, options.tracking)
    steps = rungs(asked, where, options.device)
    notes = [note for rung in steps for note in check(rung.build, here=options.scheduler is None).notes]
    compared = comparison(asked, steps)
    reports = _from_traces(steps, compared)
    if reports is None:
        api = os.environ.get("PREFECT_API_URL") or where.prefect_api
        Distribution(options.runner, options.scheduler, options.workers).check(api)
        check_tracking(where.tracking)
        tell(dict.fromkeys(notes))
        reports = _through_prefect(options, asked, where)
    else:
        print("every node is cached; nothing was computed", file=sys.stderr)
    found, places = finish(asked, reports, compared, where)
    if options.json is not None:
        write_json(options.json, [report.model_dump(mode="json") for report in reports])
    show_front(found, reports)
    for name, place in places.items():
        print(f"{name:<12} {place}")
    return 0 if all(report.passed for report in reports) else 1


def asked_of(options: argparse.Namespace) -> Asked:
    """What the command line asks for. InputError for budgets or metrics that make no sense."""
    return Asked(
        recipe=options.recipe,
        assignments=tuple(parse_assignment(a) for a in options.set),
        bits=read_bits(options.bits),
        over=options.over,
        metrics=read_metrics(options.metrics),
        random=options.random,
    )


def read_bits(text: str) -> tuple[float, ...]:
    """`2.35,2.5,3` as rising numbers."""
    try:
        found = sorted(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        found = []
    if not found or len(set(found)) < len(found) or not all(0 < bits <= 32 for bits in found):
        raise InputError(
            "cannot read the budgets", where="--bits", got=text, wanted="different bits per weight, as 2.5,3,3.5"
        )
    return tuple(found)


def read_metrics(text: str) -> tuple[MetricName, ...]:
    """Names of metrics, each once; `all` is every one."""
    known: tuple[MetricName, ...] = get_args(MetricName)
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["all"]:
        return known
    if unknown := [name for name in names if name not in known]:
        raise InputError(
            "no such metric", where="--metrics", got=", ".join(unknown), wanted=", ".join((*known, "or all"))
        )
    return tuple(name for name in known if name in names)


def _from_traces(steps: Sequence[Rung], compared: Comparison) -> list[Report] | None:
    """The reports of a sweep of which every trace hits; else None."""
    reports = []
    for rung in steps:
        report = from_traces(rung.build, time.perf_counter())
        if report is None:
            return None
        reports.append(report)
    try:
        look_up(compared.build.runner)
    except (NotCached, Unavailable):
        return None
    return reports


def _through_prefect(options: argparse.Namespace, asked: Asked, where: Settings) -> list[Report]:
    prefect_environment(where)
    check_prefect(where.prefect_api)
    from pipelines import sweep_flow

    leave_the_last_word_to_the_command()
    end_with_us()
    documents = sweep_flow.sweep(
        recipe=asked.recipe,
        bits=list(asked.bits),
        over=asked.over,
        set=dict(asked.assignments),
        metrics=list(asked.metrics),
        random=asked.random,
        store=where.store,
        tracking=where.tracking,
        device=options.device,
        runner=options.runner,
        scheduler=options.scheduler,
        workers=options.workers,
    )
    return [Report.model_validate(document) for document in documents]


def finish(
    asked: Asked, reports: Sequence[Report], compared: Comparison, where: Settings
) -> tuple[Sweep, dict[str, object]]:
    """Draw the front, keep it in the store under a pin and in MLflow above its builds; where everything is."""
    store = compared.build.runner.store
    built: Built = look_up(compared.build.runner)
    found = sweep_of(asked, reports, compared, built)
    document = found.model_dump(mode="json")
    folder = where.state / "sweeps" / f"{found.recipe}-{digest_of(document)[:12]}"
    pictures = draw_front(found, folder)
    write_json(folder / "sweep.json", document)
    digest = store.artifacts.save(meta=document, files={path.name: path for path in pictures})
    pin = f"sweep-{found.recipe}"
    if store.builds.pins().get(pin) == digest:
        return found, {"front": folder / "front.svg", "artifact": f"{digest} (pinned as {pin})"}
    run = _log(found, reports, where, _metrics(found, reports), pictures)
    store.builds.pin(pin, digest)
    return found, {"front": folder / "front.svg", "artifact": f"{digest} (pinned as {pin})", "MLflow run": run}


def _metrics(found: Sweep, reports: Sequence[Report]) -> dict[str, float]:
    metrics = {"builds": float(len(reports)), "builds_failed": float(sum(not report.passed for report in reports))}
    if (ratio := over_uniform(found)) is not None:
        metrics["kl_over_uniform"] = ratio
    if found.trend is not None:
        metrics["trend_slope"] = found.trend.slope
    return metrics


def _log(
    found: Sweep, reports: Sequence[Report], where: Settings, metrics: dict[str, float], pictures: Sequence[Path]
) -> str:
    from store.sweeps import add_to_sweep, close_sweep, open_sweep

    bits = ", ".join(f"{each:g}" for each in found.bits)
    name = f"{found.bits[0]:g} to {found.bits[-1]:g} bits over {found.over}"
    run = open_sweep(where.tracking, found.recipe, name, {"budget.bits_per_weight": bits, "budget.over": found.over})
    add_to_sweep(where.tracking, run, [report.mlflow_run_id for report in reports if report.mlflow_run_id])
    close_sweep(where.tracking, run, metrics, files=[*pictures, pictures[0].with_name("sweep.json")])
    return run
