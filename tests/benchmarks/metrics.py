"""What each sensitivity metric is worth on the demo model: seconds, rank correlation, and the KL of its plans.

    OMP_NUM_THREADS=1 PYTHONPATH=.:tests/support python tests/benchmarks/metrics.py --keep FOLDER [--write]

All metrics score the same candidates: signed symmetric, groups of 32, 64 and 128, feedback solver. Plans are integer
programs at budgets over the linears, measured on held-out text with the candidates' own weights in place. What is done
is kept in FOLDER and taken from there while neither code nor candidates change. `--write` puts the tables into
steps/allocate/README.md. Seconds are CPU seconds on one core.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from bench import (
    RESAMPLES,
    Bench,
    digest,
    kl_ratio,
    mean_kl,
    measured,
    open_bench,
    plan_of,
    scored,
    uniform_plan,
    write,
)

from pipelines.code_id import code_of
from schemas.sensitivity import METRICS, PairProbe
from steps.model.structure import units
from steps.sensitivity import pair_probe
from steps.step import Env, Output
from steps.table import STEPS
from steps.verify.bootstrap import Rows, draw

BUDGETS = (2.35, 2.5, 3.0, 3.5, 4.0)
FORMATS = [f"int{bits}-g{group}" for bits in (2, 3, 4, 5, 6) for group in (32, 64, 128)]
OWN_BYTES = ("int2-g64", "int3-g64", "int4-g64")
TRUTH = [f"int{bits}-g64" for bits in (2, 3, 4, 5, 6)]
"""Formats whose single-unit KL is measured on held-out text too, to be ranked against."""
BEGIN, END = "<!-- metrics.py -->", "<!-- end of metrics.py -->"


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Rank correlation."""
    ranks = [np.argsort(np.argsort(np.asarray(values))) for values in (first, second)]
    return float(np.corrcoef(np.stack(ranks))[0, 1])


def correlations(metas: Mapping[str, Mapping[str, Any]], truth: Mapping[str, float]) -> tuple[float, float, float]:
    """Over all candidates; over the units of one format (mean over formats); and the spread of score per nat.

    The spread is the factor between the most and the least favoured unit: largest over least ratio of score to
    measured KL among the units of a format, median over formats. 1 means that sums of scores are sums of KL.
    """
    whole = spearman([metas[n]["score"] for n in truth], list(truth.values()))
    within, spread = [], []
    for fmt in TRUTH:
        names = [n for n in truth if n.endswith(f"/{fmt}")]
        within.append(spearman([metas[n]["score"] for n in names], [truth[n] for n in names]))
        scale = [metas[n]["score"] / truth[n] for n in names]
        spread.append(max(scale) / min(scale))
    return whole, statistics.mean(within), statistics.median(spread)


def metric_table(bench: Bench, found: Mapping[str, dict[str, Any]]) -> list[str]:
    """Markdown: a row per metric."""
    every = bench.ports["candidates"].children
    some = Output(children={n: c for n, c in every.items() if n.rpartition("/")[2] in TRUTH})
    held_out = {**bench.ports, **bench.held_out, "candidates": some}
    truth = {n: float(m["score"]) for n, m in scored(bench, "kl_probe", held_out)["metas"].items()}
    probe = found["kl_probe"]["seconds"]
    lines = [
        "| metric | seconds | of the probe's | Spearman, all | Spearman, units | spread |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, result in found.items():
        whole, within, spread = correlations(result["metas"], truth)
        share = f"{result['seconds'] / probe:.1%}"
        lines.append(f"| `{name}` | {result['seconds']:.2f} | {share} | {whole:.3f} | {within:.3f} | {spread:.1f} |")
    return lines


def plan_table(bench: Bench, found: Mapping[str, dict[str, Any]]) -> list[str]:
    """Markdown: measured KL of every metric's plan at every budget, over that of the probe's; uniform below."""
    count_BD = draw(len(measured(bench, uniform_plan(bench, FORMATS[0]))), RESAMPLES, 0)
    lines = [
        "| plan of | " + " | ".join(f"{bits} bpw" for bits in BUDGETS) + " |",
        "|---|" + "---:|" * len(BUDGETS),
    ]
    best = [best_uniform(bench, bits) for bits in BUDGETS]
    probe = [measured(bench, plan_of(bench, found["kl_probe"]["metas"], bits).meta["plan"]) for bits in BUDGETS]
    pairs = list(zip(probe, best, strict=True))
    lines.append(_row("`kl_probe`, KL", [f"{mean_kl(count_BD, rows):.5f}" for rows in probe]))
    uniform = [f"{mean_kl(count_BD, rows):.5f} ({name})" if rows else "none" for name, rows in best]
    lines.append(_row("best uniform, KL", uniform))
    over = [kl_ratio(p, rows, count_BD) if rows else "-" for p, (_, rows) in pairs]
    lines.append(_row("`kl_probe` / uniform", over))
    for name, result in found.items():
        if name == "kl_probe":
            continue
        plans = [measured(bench, plan_of(bench, result["metas"], bits).meta["plan"]) for bits in BUDGETS]
        lines.append(
            _row(f"`{name}` / `kl_probe`", [kl_ratio(a, b, count_BD) for a, b in zip(plans, probe, strict=True)])
        )
        print(lines[-1], file=sys.stderr, flush=True)
    return lines


def own_bytes_table(bench: Bench, found: Mapping[str, dict[str, Any]]) -> list[str]:
    """Markdown: KL of plans at exactly the bytes of a uniform format, over that format's."""
    count_BD = draw(len(measured(bench, uniform_plan(bench, FORMATS[0]))), RESAMPLES, 0)
    lines = ["| plan of / uniform | " + " | ".join(OWN_BYTES) + " |", "|---|" + "---:|" * len(OWN_BYTES)]
    meta = bench.ports["model"].meta
    weights = sum(o * i for unit in units(meta["config"], meta["shapes"]) for o, i in unit.shapes)
    for name in ("kl_probe", "fisher_rows", "output_error", "weight_error"):
        cells = []
        for fmt in OWN_BYTES:
            alone = plan_of(bench, found[name]["metas"], 16, [fmt]).meta["certificate"]["budget"][0]["used"]
            bits = math.ceil(8 * alone / weights * 1e4) / 1e4
            plan = plan_of(bench, found[name]["metas"], bits).meta["plan"]
            cells.append(kl_ratio(measured(bench, plan), measured(bench, uniform_plan(bench, fmt)), count_BD))
        lines.append(_row(f"`{name}`", cells))
    return lines


def _row(name: str, cells: Sequence[str]) -> str:
    return f"| {name} | " + " | ".join(cells) + " |"


def best_uniform(bench: Bench, bits: float) -> tuple[str, Rows]:
    """The uniform format of least measured KL among those within the budget; ("", []) when there is none."""
    metas = scored(bench, "kl_probe", bench.ports)["metas"]
    sizes = {fmt: plan_of(bench, metas, 16, [fmt]).meta["certificate"]["budget"][0]["used"] for fmt in FORMATS}
    limit = plan_of(bench, metas, bits).meta["certificate"]["budget"][0]["limit"]
    fitting = [(fmt, measured(bench, uniform_plan(bench, fmt))) for fmt, size in sizes.items() if size <= limit]
    return min(fitting, key=lambda pair: sum(r["tokens"] * r["kl"] for r in pair[1]), default=("", []))


def kind_table(bench: Bench, found: Mapping[str, dict[str, Any]], fmt: str = "int3-g64") -> list[str]:
    """Markdown: per kind of unit, least and most of the KL that one unit of score stands for, relative to all units."""
    names = ("output_error", "weight_error", "fisher_rows", "fisher")
    truth, kinds = {n: m["score"] for n, m in found["kl_probe"]["metas"].items()}, ("qkv", "o", "gate_up", "down")
    lines = [f"| KL per score, {fmt} | " + " | ".join(kinds) + " |", "|---|" + "---:|" * len(kinds)]
    for name in names:
        scale = {n: truth[n] / m["score"] for n, m in found[name]["metas"].items() if n.endswith(f"/{fmt}")}
        middle = statistics.median(scale.values())
        of = {k: [v / middle for n, v in scale.items() if n.rpartition("/")[0].endswith(f".{k}")] for k in kinds}
        lines.append(_row(f"`{name}`", [f"{min(of[k]):.2f} to {max(of[k]):.2f}" for k in kinds]))
    return lines


def additivity_lines(bench: Bench, found: Mapping[str, dict[str, Any]]) -> list[str]:
    """Pairs of neighbours in the probe's plan at each budget: measured together against the sum."""
    row = next(step for step in STEPS if step.spec is PairProbe)
    lines = [
        "| budget | sum of single KL | both | ratio | correlation: least, median, most |",
        "|---:|---:|---:|---:|---|",
    ]
    for bits in BUDGETS:
        plan = plan_of(bench, found["kl_probe"]["metas"], bits)
        about = [code_of(row.module), plan.meta["plan"], digest(bench.ports["candidates"])]
        spec = PairProbe(step="pair_probe")
        run = partial(pair_probe.run, spec, {**bench.ports, "plan": plan}, Env())
        meta = bench.once("pairs", about, lambda run=run: dict(run()["interactions"].meta))  # type: ignore[misc]
        total, cosines = meta["additivity"], sorted(pair["correlation"] for pair in meta["pairs"])
        spread = f"{cosines[0]:.2f}, {statistics.median(cosines):.2f}, {cosines[-1]:.2f}"
        lines.append(f"| {bits} | {total['apart']:.5f} | {total['together']:.5f} | {total['ratio']:.3f} | {spread} |")
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--score-windows", type=int, default=24)
    parser.add_argument("--evaluate-windows", type=int, default=96)
    options = parser.parse_args()
    bench = open_bench(options.keep, options.score_windows, options.evaluate_windows, FORMATS)
    found = {}
    for name in METRICS:
        found[name] = scored(bench, name, bench.ports)
        print(f"{name}: {found[name]['seconds']:.2f} s", file=sys.stderr, flush=True)
    parts = (metric_table, plan_table, own_bytes_table, kind_table, additivity_lines)
    text = "\n\n".join("\n".join(part(bench, found)) for part in parts)
    text += f"\n\nScored on {options.score_windows} windows of text, measured on {options.evaluate_windows} others."
    print(text)
    if options.write:
        write(text, BEGIN, END)


if __name__ == "__main__":
    main()
