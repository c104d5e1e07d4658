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
from functools import partial
from pathlib import Path

from readme_table import lines_of, put
from reallocate_bench import Bench, Rows
from refine_inputs import FORMATS

from schemas.allocate import Select
from schemas.artifact import item_name
from schemas.distill import Rates
from schemas.sensitivity import Fisher, KLProbe, Rescore
from steps.allocate import select
from steps.sensitivity import fisher, kl_probe, rescore
from steps.step import Env, Output, Value
from steps.verify.bootstrap import draw, interval, means, ratio

RESAMPLES = 2000
SHARED_NORMS = Rates(codes="auto", scales=1e-3)


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
