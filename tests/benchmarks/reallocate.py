"""Whether it pays to refine candidates before the formats are chosen, and to choose again with what that teaches.

    OMP_NUM_THREADS=1 PYTHONPATH=. python tests/benchmarks/reallocate.py --keep FOLDER [--bits 2.5 3.26]
        [--tokens 589824] [--cover near|uniform] [--share 0.5] [--metric fisher|kl_probe|rescore] [--formats ...]
        [--text SOURCE] [--device cpu] [--prepare] [--write]

Every arm may train on as many tokens, each used once:

* one spends them all on the first plan;
* the others spend a share on plans that together hold every unit in several formats (`near`: the first plan, and the
  plans with every unit one format smaller and one larger; `uniform`: each format everywhere). What comes out of these
  are candidates, too: they are scored like any others (`rescore`: swapped into the first plan as it was refined), the
  budget is solved for again, and the rest of the tokens refine the plan that this gives. Norms stay during the first
  part, since all formats of a unit share them;
* the control measures costs again, by the same metric and of the same formats, without refining anything before.

Measured on the evaluation text and on windows of the training text that no arm trains on, with paired 95 % intervals
against the first arm. `--prepare` makes the inputs (refine_inputs.py) and ends; with these in FOLDER nothing but torch,
transformers, safetensors, pydantic and numpy is needed. Trainings that are done are kept in FOLDER, those that are cut
short go on. `--write` puts the table into steps/distill/README.md.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from readme_table import lines_of, put
from refine_inputs import CANDIDATES, FORMATS, PORTS, load, part, prepare, read, write

from schemas.allocate import Allocate, DynamicProgram, Select
from schemas.artifact import item_name
from schemas.base import digest_of
from schemas.budget import Budget
from schemas.calibrate import Reference
from schemas.distill import Distill, Rates
from schemas.sensitivity import Fisher, KLProbe, Rescore
from schemas.verify import Evaluate
from steps.allocate import run as allocate
from steps.allocate import select
from steps.calibrate import reference
from steps.distill import run as distill
from steps.sensitivity import fisher, kl_probe, rescore
from steps.step import Env, Output, Value
from steps.verify import evaluate
from steps.verify.bootstrap import draw, interval, means, ratio

RESAMPLES = 2000
PREPARED = 8_000_000
"""Tokens of text to prepare at most; all of it serves whatever --tokens are asked."""
MEASURED = 64
"""Windows of the training text that nothing is trained on, beside those that each training holds out for itself."""
TELL_SECONDS = 15
SHARED_NORMS = Rates(codes="auto", scales=1e-3)
Rows = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Share:
    """Some windows of the training text, and how many tokens of them a training may use."""

    tokens: Value
    count: int


@dataclass(frozen=True)
class Bench:
    """One budget: its inputs, how the tokens are shared out, and where what is done is kept."""

    options: argparse.Namespace
    bits: float

    @cached_property
    def given(self) -> dict[str, Value]:
        """What was prepared."""
        o = self.options
        return load(prepare(o.keep, o.formats, self.bits, "gptq", PREPARED, o.text, PORTS | CANDIDATES))

    @cached_property
    def covers(self) -> list[dict[str, str]]:
        """Plans that together hold every unit in several formats."""
        near: dict[str, tuple[str, ...]] = self.plan.meta["neighbours"]
        plan: dict[str, str] = self.plan.meta["plan"]
        if self.options.cover == "uniform":
            return [dict.fromkeys(plan, form) for form in self.options.formats]
        return [
            plan,
            {unit: near[unit][0] for unit in plan},  # the plan's own where there is none below
            {unit: near[unit][-1] for unit in plan},
        ]

    @cached_property
    def shares(self) -> list[Share]:
        """One for each cover, and the last for what comes after; together disjoint."""
        own = Distill(step="distill").held_out
        length, windows = self.given["training"].tensors["ids_NS"].shape[1], self.windows
        first = int(self.options.share * self.options.tokens) // len(self.covers)
        counts = [first] * len(self.covers) + [self.options.tokens - first * len(self.covers)]
        found, at = [], MEASURED
        for count in counts:
            size = -(-count // length) + own
            found.append(Share(part(self.given["training"], range(at, at + size)), count))
            at += size
        if at > windows:
            sys.exit(f"{at} windows of {length} tokens are needed, {windows} are there: give --text, or fewer --tokens")
        return found

    @property
    def windows(self) -> int:
        """Windows of training text."""
        return len(self.given["training"].tensors["lengths_N"])

    @property
    def everything(self) -> Share:
        """All that the shares hold."""
        size = sum(len(share.tokens.tensors["lengths_N"]) for share in self.shares)
        return Share(part(self.given["training"], range(MEASURED, MEASURED + size)), self.options.tokens)

    def env(self, name: str) -> Env:
        """Where a step runs, with progress on the terminal and a folder to go on from."""
        return Env(self.options.device, progress=Told(name), resume=self.options.keep / "resume" / name)

    @cached_property
    def plan(self) -> Value:
        """The first plan."""
        return self.allocated(self.given["scores"], self.given["candidates"])

    def allocated(self, scores: Value, candidates: Value) -> Value:
        """The budget solved with these scores, exactly and without a solver."""
        exact = DynamicProgram(kind="dp")
        spec = Allocate(step="allocate", budget=Budget(bits_per_weight=self.bits), allocator=exact, bootstrap=0)
        inputs = {"model": self.given["model"], "scores": scores, "candidates": candidates}
        return allocate.run(spec, inputs, Env())["plan"]

    def refined(self, selection: Value, share: Share, **fields: Any) -> Output:
        """A training, done once."""
        spec = Distill(step="distill", tokens=share.count, **fields)
        name = digest_of(
            [spec.model_dump(mode="json"), content(selection), content(share.tokens), self.options.device]
        )[:16]
        path = self.options.keep / f"refined-{name}"
        if not path.with_suffix(".json").exists():
            inputs = {"model": self.given["model"], "selection": selection, "tokens": share.tokens}
            write(distill.run(spec, inputs, self.env(name))["selection"], path)
        return read(path)

    def measured(self, selection: Value) -> dict[str, Rows]:
        """Rows per document of the evaluation text, and per window of held-out training text."""
        texts = {
            "evaluation": (self.given["evaluation"], self.given["reference"]),
            "held out": (self._held_out, self._held_out_reference),
        }
        found = {}
        for name, (tokens, original) in texts.items():
            inputs = {"model": self.given["model"], "selection": selection, "tokens": tokens, "reference": original}
            env = Env(self.options.device)
            found[name] = evaluate.run(Evaluate(step="evaluate"), inputs, env)["evaluation"].meta["documents"]
        return found

    @cached_property
    def _held_out(self) -> Value:
        return part(self.given["training"], range(MEASURED))

    @cached_property
    def _held_out_reference(self) -> Value:
        inputs = {"model": self.given["model"], "tokens": self._held_out}
        return reference.run(Reference(step="reference"), inputs, Env(self.options.device))["reference"]


class Told:
    """Progress, now and then, on stderr."""

    def __init__(self, name: str) -> None:
        self._name, self._said = name, time.monotonic()

    def __call__(self, done: int, total: int, what: str) -> None:
        """What a step says."""
        if time.monotonic() - self._said > TELL_SECONDS:
            self._said = time.monotonic()
            print(f"{self._name}: {done}/{total} {what}", file=sys.stderr, flush=True)


def content(value: Value) -> str:
    """Digest of a value's tensors and children."""
    tensors = {name: hashlib.sha256(raw(tensor)).hexdigest() for name, tensor in value.tensors.items()}
    return digest_of([tensors, {name: content(child) for name, child in value.children.items()}])


def raw(tensor: torch.Tensor) -> bytes:
    """A tensor's bytes; numpy knows no bf16."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def chosen(candidates: Value, plan: Value) -> Value:
    """The candidates that a plan names."""
    return select.run(Select(step="select"), {"candidates": candidates, "plan": plan}, Env())["selection"]


def candidates_of(bench: Bench) -> Output:
    """Every unit in the formats that the covers give it, as trained together with the others of its cover."""
    children: dict[str, Value] = {}
    for cover, share in zip(bench.covers, bench.shares, strict=False):
        selection = chosen(bench.given["candidates"], Output({"plan": cover}))
        refined = bench.refined(selection, share, rates=SHARED_NORMS)
        children |= {item_name(unit, form): refined.children[unit] for unit, form in cover.items()}
    return Output(children=children)


def scores_of(bench: Bench, candidates: Output) -> Output:
    """What the refined candidates cost, by the metric asked for."""
    given, env = bench.given, bench.env("scores")
    shared = {"model": given["model"], "tokens": given["scoring"]}
    if bench.options.metric == "fisher":
        return fisher.run(Fisher(step="fisher"), {**shared, "candidates": candidates}, env)["scores"]
    shared |= {"reference": given["scoring_reference"]}
    run = partial(kl_probe.run, KLProbe(step="kl_probe"))
    if bench.options.metric == "rescore":
        run = partial(rescore.run, Rescore(step="rescore"))
        shared |= {"plan": bench.plan, "selection": chosen(candidates, bench.plan)}
    first = given["scores"].children
    found = {
        name: run({**shared, "candidates": child, "scores": first[name]}, env)["scores"]
        for name, child in sorted(candidates.children.items())
    }
    return Output(children=found)


def arms(bench: Bench) -> dict[str, tuple[Value, Value]]:
    """Name -> (plan, selection) of everything that is compared; the first is what the others have to beat."""
    solver, refined = bench.given["candidates"], candidates_of(bench)
    again = bench.allocated(scores_of(bench, refined), refined)
    same = Output(children={name: solver.children[name] for name in refined.children})
    measured_again = bench.allocated(scores_of(bench, same), same)
    first, last, everything = bench.plan, bench.shares[-1], bench.everything
    return {
        "first plan, all tokens": (first, bench.refined(chosen(solver, first), everything)),
        "first plan, as solved": (first, chosen(solver, first)),
        "first plan from refined candidates": (first, chosen(refined, first)),
        "first plan from refined candidates, the rest of the tokens": (
            first,
            bench.refined(chosen(refined, first), last),
        ),
        "allocated again from costs of refined candidates": (again, chosen(refined, again)),
        "allocated again from costs of refined candidates, the rest of the tokens": (
            again,
            bench.refined(chosen(refined, again), last),
        ),
        "allocated again from costs of the solver's candidates, all tokens": (
            measured_again,
            bench.refined(chosen(solver, measured_again), everything),
        ),
        "allocated again from costs of refined candidates, the solver's candidates, all tokens": (
            again,
            bench.refined(chosen(solver, again), everything),
        ),
    }


def rows(bench: Bench) -> list[dict[str, str]]:
    """The table of one budget."""
    found = arms(bench)
    measured = {name: bench.measured(selection) for name, (_, selection) in found.items()}
    before = next(iter(measured.values()))
    first = bench.plan.meta["plan"]
    return [
        {
            "bits": f"{bench.bits:g}",
            "arm": name,
            "units changed": str(sum(plan.meta["plan"][unit] != form for unit, form in first.items())),
            **{f"KL, {text}": spread(measured[name][text]) for text in before},
            **{f"ratio, {text}": against(measured[name][text], before[text]) for text in before},
        }
        for name, (plan, _) in found.items()
    ]


def spread(found: Rows) -> str:
    """Mean KL with the half-width of its interval."""
    kl = interval(means(draw(len(found), RESAMPLES, 0), found, "kl"))
    return f"{kl.value:.5f} ±{(kl.high - kl.low) / 2:.5f}"


def against(found: Rows, before: Rows) -> str:
    """Ratio of KL with its paired interval."""
    value = ratio(found, before, draw(len(found), RESAMPLES, 0))
    return f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"


def main() -> None:
    """Prepare, or measure and print the table."""
    options = parsed()
    options.keep.mkdir(parents=True, exist_ok=True)
    benches = [Bench(options, bits) for bits in options.bits]
    if options.prepare:
        for bench in benches:
            print(f"{bench.bits:g} bits: {bench.windows} windows of training text")
        return
    lines = lines_of([row for bench in benches for row in rows(bench)])
    print("\n".join(lines))
    if options.write:
        put(lines, Path("steps/distill/README.md"), "reallocate.py")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--bits", type=float, nargs="+", default=[2.5, 3.26])
    parser.add_argument("--tokens", type=int, default=589_824)
    parser.add_argument("--cover", choices=("near", "uniform"), default="near")
    parser.add_argument("--share", type=float, default=0.5, help="of the tokens, for the candidates")
    parser.add_argument("--metric", choices=("fisher", "kl_probe", "rescore"), default="fisher")
    parser.add_argument("--formats", nargs="+", default=FORMATS)
    parser.add_argument("--text")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prepare", action="store_true", help="make the inputs and end")
    parser.add_argument("--write", action="store_true", help="put the table into steps/distill/README.md")
    return parser.parse_args()


if __name__ == "__main__":
    main()
