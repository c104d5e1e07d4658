"""The demo model's candidates, scored by any metric and measured in any plan: what the scripts here share.

Whatever is made is kept in a folder and taken from there while neither code nor inputs change.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from pipelines.build import prepare
from pipelines.code_id import code_of
from pipelines.drive import drive
from pipelines.methods.rounding import gptq
from pipelines.run import Place, Runner
from pipelines.settings import Settings
from schemas.allocate import Allocate
from schemas.base import digest_of
from schemas.recipe import Recipe
from schemas.sensitivity import METRICS
from schemas.verify import Evaluate
from steps.allocate import run as allocate
from steps.step import Env, Output, Value
from steps.table import STEPS
from steps.verify import evaluate
from steps.verify.bootstrap import Rows, means, ratio

T = TypeVar("T")
MADE = ("statistics", "candidates", "scoring", "scoring_reference", "evaluation", "reference")
"""Nodes of the demo's recipe whose outputs are measured on."""
RESAMPLES = 2000
README = Path("steps/allocate/README.md")
MEMO: dict[Any, Any] = {}


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


def open_bench(
    keep: Path, score_windows: int, evaluate_windows: int, formats: Sequence[str], refits: int | None = None
) -> Bench:
    """Quantize the demo model to every format (kept in a store), and load what metrics are handed."""
    keep.mkdir(parents=True, exist_ok=True)
    where = Settings(keep, str(keep / "store"), f"sqlite:///{keep / 'mlflow.db'}", None)
    asked = [
        ("formats", list(formats)),
        ("sensitivity", "kl_probe"),
        ("pack", "bitsmith"),
        ("text.score_windows", score_windows),
        ("text.evaluate_windows", evaluate_windows),
        ("rounding", gptq().model_copy(update={"refits": refits}).model_dump(mode="json")),
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


def write(text: str, begin: str, end: str, readme: Path = README) -> None:
    """Put a text between two marks of a README."""
    before, _, rest = readme.read_text().partition(begin)
    readme.write_text(f"{before}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}")
