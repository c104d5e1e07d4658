"""What more families of formats on offer are worth where bits are few: plans and the best uniform format of each offer.

    OMP_NUM_THREADS=1 PYTHONPATH=.:tests/support python tests/benchmarks/offers.py --keep FOLDER [--write]

Scored by `fisher`, every scale refitted twice, measured on held-out text; an offer's best uniform format is the one of
least KL on that text within the budget, of all formats in the offer. `--write` puts the table into
steps/allocate/README.md.
"""

from __future__ import annotations

import argparse
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

from bench import RESAMPLES, Bench, kl_ratio, mean_kl, measured, open_bench, plan_of, scored, uniform_plan, write

from steps.verify.bootstrap import draw

BUDGETS = (2.35, 2.5)
INTEGERS = [f"int{bits}-g{group}" for bits, group in product((2, 3, 4), (32, 64, 128))]
ROWS = [f"int{bits}-row" for bits in (2, 3, 4)]
COLUMNS = [f"baq{mean}-{group}" for mean, group in product(("2.25", "2.5", "2.75", "3"), ("g128", "row"))]
TERNARY = ["tq1_0"]
K_QUANTS = ["q2_k", "q3_k"]
OFFERS = {
    "integers": INTEGERS,
    "and rows": [*INTEGERS, *ROWS],
    "and widths by column": [*INTEGERS, *ROWS, *COLUMNS],
    "integers and ternary": [*INTEGERS, *TERNARY],
    "and K-quants": [*INTEGERS, *TERNARY, *K_QUANTS],
    "all": [*INTEGERS, *ROWS, *COLUMNS, *TERNARY, *K_QUANTS],
}
BEGIN, END = "<!-- offers.py -->", "<!-- end of offers.py -->"


def lines(bench: Bench) -> list[str]:
    """Markdown: a row per budget and offer."""
    metas: dict[str, Any] = scored(bench, "fisher", bench.ports)["metas"]
    count_BD = draw(len(measured(bench, uniform_plan(bench, INTEGERS[0]))), RESAMPLES, 0)
    found = ["| bits | on offer | plan, KL | best uniform | plan over it | chosen |", "|---:|---|---:|---|---:|---|"]
    used = {f: plan_of(bench, metas, 16, [f]).meta["certificate"]["budget"][0]["used"] for f in OFFERS["all"]}
    for bits, (name, formats) in product(BUDGETS, OFFERS.items()):
        plan = plan_of(bench, metas, bits, formats).meta
        limit, rows = plan["certificate"]["budget"][0]["limit"], measured(bench, plan["plan"])
        fitting = {f: measured(bench, uniform_plan(bench, f)) for f in formats if used[f] <= limit}
        best = min(fitting, key=lambda f: mean_kl(count_BD, fitting[f]))
        chosen = ", ".join(f"{count} {f}" for f, count in Counter(plan["plan"].values()).most_common())
        kl, uniform = mean_kl(count_BD, rows), mean_kl(count_BD, fitting[best])
        ratio = kl_ratio(rows, fitting[best], count_BD)
        found.append(f"| {bits} | {name} | {kl:.5f} | {best} {uniform:.5f} | {ratio} | {chosen} |")
        print(found[-1], flush=True)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--score-windows", type=int, default=24)
    parser.add_argument("--evaluate-windows", type=int, default=96)
    options = parser.parse_args()
    bench = open_bench(options.keep, options.score_windows, options.evaluate_windows, OFFERS["all"], refits=2)
    table = lines(bench)
    if options.write:
        write("\n".join(table), BEGIN, END)


if __name__ == "__main__":
    main()
