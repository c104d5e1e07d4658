"""What each sensitivity metric is worth on the demo model: seconds, rank correlation, and the KL of its plans.

    OMP_NUM_THREADS=1 PYTHONPATH=.:tests/support python tests/benchmarks/metrics.py --keep FOLDER [--write] [--speed]

All metrics score the same candidates: signed symmetric, groups of 32, 64 and 128, feedback solver. Plans are integer
programs at budgets over the linears, measured on held-out text with the candidates' own weights in place. What is done
is kept in FOLDER and taken from there while neither code nor candidates change. `--write` puts the tables into
steps/allocate/README.md. `--speed` measures the KL probe with cached block inputs against whole forwards instead.
Seconds are CPU seconds on one core.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from pipelines.build import prepare
from pipelines.code_id import code_of
from pipelines.drive import drive
from pipelines.run import Place, Runner
from pipelines.settings import Settings
from schemas.allocate import Allocate
from schemas.base import digest_of
from schemas.recipe import Recipe
from schemas.sensitivity import METRICS, KLProbe, PairProbe
from schemas.verify import Evaluate
from steps.allocate import run as allocate
from steps.model.structure import units
from steps.model.whole import hidden_from
from steps.sensitivity import kl_probe, pair_probe
from steps.step import Env, Output, Value
from steps.table import STEPS
from steps.verify import evaluate
from steps.verify.bootstrap import Rows, draw, means, ratio
from steps.verify.metrics import chunks, kl

T = TypeVar("T")
BUDGETS = (2.35, 2.5, 3.0, 3.5, 4.0)
FORMATS = [f"int{bits}-g{group}" for bits in (2, 3, 4, 5, 6) for group in (32, 64, 128)]
OWN_BYTES = ("int2-g64", "int3-g64", "int4-g64")
MADE = ("statistics", "candidates", "scoring", "scoring_reference", "evaluation", "reference")
"""Nodes of the demo's recipe whose outputs are measured on."""
RESAMPLES = 2000
README = Path("steps/allocate/README.md")
TRUTH = [f"int{bits}-g64" for bits in (2, 3, 4, 5, 6)]
"""Formats whose single-unit KL is measured on held-out text too, to be ranked against."""
MEMO: dict[Any, Any] = {}
BEGIN, END = "<!-- metrics.py -->", "<!-- end of metrics.py -->"


@dataclass(frozen=True)
class Bench:
    """Values that every metric is measured on, and where results are kept."""

    keep: Path
    ports: Mapping[str, Value]
    """model, candidates, statistics, and tokens and reference of the scoring text."""
    held_out: Mapping[str, Value]
    """tokens and reference of the evaluation text."""

    def once(self, name: str, about: Any, make: Callable[[], T]) -> T:
        """A JSON result, made once per name and `about`."""
        path = self.keep / f"{name}-{digest_of(about)[:16]}.json"
        if not path.exists():
            path.write_text(json.dumps(make()))
        found: T = json.loads(path.read_text())
        return found


def open_bench(keep: Path, score_windows: int, evaluate_windows: int, formats: Sequence[str] = FORMATS) -> Bench:
    """Quantize the demo model to every format (kept in a store), and load what metrics are handed."""
    keep.mkdir(parents=True, exist_ok=True)
    where = Settings(keep, str(keep / "store"), f"sqlite:///{keep / 'mlflow.db'}", None)
    asked = [
        ("formats", list(formats)),
        ("sensitivity", "kl_probe"),
        ("pack", "bitsmith"),
        ("text.score_windows", score_windows),
        ("text.evaluate_windows", evaluate_windows),
    ]
    build = prepare("demo", asked, where, "cpu")
    wanted = {"model", "calibration_text", "evaluation_text", "calibration", *MADE}
    part = Recipe(name="metrics", nodes={name: node for name, node in build.recipe.nodes.items() if name in wanted})
    runner, bench = Runner(part, build.runner.store, Place("cpu", where.cache)), Bench(keep, {}, {})
    codes = sorted({code_of(b.step.module) for b in runner.bound if b.step is not None})
    made = bench.once("made", [part.model_dump(mode="json"), codes], lambda: drive(runner, runner.execute).outputs)
    value = {node: runner.store.artifacts.load(next(iter(made[node].values()))) for node in MADE}
    return Bench(
        keep,
        {
            "model": runner.source("model"),
            "candidates": value["candidates"],
            "statistics": value["statistics"],
            "tokens": value["scoring"],
            "reference": value["scoring_reference"],
        },
        {"tokens": value["evaluation"], "reference": value["reference"]},
    )


def scored(bench: Bench, name: str, ports: Mapping[str, Value]) -> dict[str, Any]:
    """`seconds` (CPU) and `metas` by item, of one metric on some text."""
    row = next(step for step in STEPS if step.spec is METRICS[name])  # type: ignore[index]
    spec, module = row.spec.model_validate({"step": name}), importlib.import_module(row.module)
    inputs, env = {port: ports[port] for port in row.inputs}, Env(memo=MEMO)
    about = [code_of(row.module), spec.model_dump(mode="json"), *(digest(value) for value in inputs.values())]

    def make(part: Value) -> dict[str, Any]:
        started = time.process_time()
        if row.scope == "model":
            children = module.run(spec, inputs | {"candidates": part}, env)["scores"].children
        else:
            children = {
                n: module.run(spec, inputs | {"candidates": c}, env)["scores"] for n, c in part.children.items()
            }
        return {"seconds": time.process_time() - started, "metas": {n: dict(c.meta) for n, c in children.items()}}

    if row.scope == "model":
        return bench.once(f"scores-{name}", about, lambda: make(inputs["candidates"]))
    whole: dict[str, Any] = {"seconds": 0.0, "metas": {}}
    for unit, part in by_unit(
        inputs["candidates"]
    ).items():  # kept unit by unit, so that a run that is stopped loses little
        found = bench.once(f"scores-{name}-{unit}", about, partial(make, part))
        whole = {"seconds": whole["seconds"] + found["seconds"], "metas": whole["metas"] | found["metas"]}
    return whole


def digest(value: Any) -> str:
    """Of a value of the store, or of the names of a made-up one's parts."""
    return str(getattr(value, "digest", "")) or digest_of({n: digest(c) for n, c in value.children.items()})


def by_unit(candidates: Value) -> dict[str, Output]:
    """Unit -> its candidates."""
    found: dict[str, dict[str, Value]] = {}
    for name, item in candidates.children.items():
        found.setdefault(name.rpartition("/")[0], {})[name] = item
    return {unit: Output(children=items) for unit, items in found.items()}


def scores_value(metas: Mapping[str, Mapping[str, Any]]) -> Output:
    """Scores as a port's value."""
    return Output(children={name: Output(meta=meta) for name, meta in metas.items()})


def plan_of(bench: Bench, metas: Mapping[str, Mapping[str, Any]], bits: float, formats: Sequence[str] = ()) -> Output:
    """The integer program's plan at a budget over the linears; with `formats`, only these may be chosen."""
    spec = Allocate.model_validate(
        {
            "step": "allocate",
            "budget": {"bits_per_weight": bits, "over": "linears"},
            "pack": "bitsmith",
            "pins": [{"units": "*", "formats": list(formats)}] if formats else [],
            "bootstrap": 0,
        }
    )
    ports = {"model": bench.ports["model"], "candidates": bench.ports["candidates"], "scores": scores_value(metas)}
    return allocate.run(spec, ports, Env())["plan"]


def measured(bench: Bench, plan: Mapping[str, str]) -> list[dict[str, float]]:
    """Per document of the held-out text, tokens and KL of the model with the plan's candidates in place."""
    candidates = bench.ports["candidates"].children
    chosen = {unit: candidates[f"{unit}/{fmt}"] for unit, fmt in plan.items()}
    about = [{u: digest(c) for u, c in chosen.items()}, digest(bench.held_out["tokens"])]

    def make() -> list[dict[str, float]]:
        inputs = {"model": bench.ports["model"], "selection": Output(children=chosen), **bench.held_out}
        found = evaluate.run(Evaluate(step="evaluate"), inputs, Env())["evaluation"]
        return [{"tokens": row["tokens"], "kl": row["kl"]} for row in found.meta["documents"]]

    return bench.once("kl", about, make)


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


def mean_kl(count_BD: torch.Tensor, rows: Rows) -> float:
    """KL per token over all documents."""
    return float(means(count_BD[:1], rows, "kl")[0])


def kl_ratio(first: Rows, second: Rows, count_BD: torch.Tensor) -> str:
    """Of two KLs, with its interval."""
    found = ratio(first, second, count_BD)
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def uniform_plan(bench: Bench, fmt: str) -> dict[str, str]:
    """Every unit in one format."""
    return {name.rpartition("/")[0]: fmt for name in bench.ports["candidates"].children}


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


@torch.no_grad()
def speed(bench: Bench) -> list[str]:
    """The probe of one format of every unit against the same with whole forwards from the embeddings."""
    ports, env = bench.ports, Env()
    original = kl_probe.remembered(ports, KLProbe(step="kl_probe").batch, env)
    model, items = ports["model"], ports["candidates"].children
    swaps = {
        u.name: kl_probe.unit_swaps(u, items[f"{u.name}/{FORMATS[0]}"], "cpu")
        for u in units(model.meta["config"], model.meta["shapes"])
    }

    def whole(swap: Mapping[int, Mapping[str, torch.Tensor]]) -> torch.Tensor:
        """What a probe without cached inputs does: embeddings, all blocks, logits, KL."""
        found, done = [], 0
        for part in original.parts:
            hidden_NSD = original.stream.embed(part.ids_NS)
            normed_PD = part.pick(hidden_from(original.stream, original.blocks, 0, hidden_NSD, swap))
            for rows in chunks(len(normed_PD), original.stream.config.vocab_size):
                log_q_PV = torch.log_softmax(original.stream.logits(normed_PD[rows]), dim=-1)
                found.append(kl(original.log_p(slice(done + rows.start, done + rows.stop)), log_q_PV))
            done += len(normed_PD)
        return torch.cat(found)

    seconds = {"cached": 0.0, "whole": 0.0}
    for swap in swaps.values():
        started = time.process_time()
        cached_P = kl_probe.probe(original, swap)
        middle = time.process_time()
        whole_P = whole(swap)
        assert torch.allclose(cached_P, whole_P, atol=1e-6), "both must measure the same"
        seconds["cached"] += middle - started
        seconds["whole"] += time.process_time() - middle
    share = seconds["cached"] / seconds["whole"]
    return [
        f"KL probe of {len(swaps)} units: {seconds['cached']:.2f} s with cached block inputs, "
        f"{seconds['whole']:.2f} s with whole forwards: {share:.0%} (wanted: at most 60%)"
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--score-windows", type=int, default=24)
    parser.add_argument("--evaluate-windows", type=int, default=96)
    options = parser.parse_args()
    formats = FORMATS[:1] if options.speed else FORMATS
    bench = open_bench(options.keep, options.score_windows, options.evaluate_windows, formats)
    if options.speed:
        print("\n".join(speed(bench)))
        return
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


def write(text: str, begin: str, end: str) -> None:
    """Put a text between two marks of the README."""
    before, _, rest = README.read_text().partition(begin)
    README.write_text(f"{before}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}")


if __name__ == "__main__":
    main()
