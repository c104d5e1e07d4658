"""The front of size against KL on the demo model: the chosen plans against uniform formats, greedy and random plans.

    python tests/benchmarks/front.py [--state FOLDER] [--bits LIST] [--metrics LIST] [--rounds 2] [--set FIELD=VALUE]

One `bitsmith sweep few-bits`, without training after selection, so that everything is made of the same candidate
tensors: signed symmetric codes of 2, 3, 4 and 5 bits in groups of 32, 64 and 128, and ternary ones in llama.cpp's
blocks of 256; scales of all are refitted twice. The tied embedding is in 8 bits. Budgets are over the linears, and the
bytes of everything else stand beside. Wanted: KL of the plan at most 0.6 of that of the best uniform format of no more
bytes, of all that are on offer, wherever there is a uniform format below and one above; never more than greedy's; and
never more than another metric's, with --metrics, beyond the interval. KL is measured on held-out text, which nothing
here was chosen on. Run again with the same folder, it computes nothing. Prints Markdown.

`least` is what no plan of these candidates can be expected to beat: the relaxation's bound on a sum of scores, times
what measuring the plan on the text of its scores came to over its own sum; in brackets over the best uniform format.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path

from pipelines.front import best_uniform, of_series
from schemas.report import Report
from schemas.sweep import FrontPoint, Sweep

BITSMITH = (sys.executable, "-m", "pipelines.cli")
INTEGERS = [f"int{bits}-g{group}" for bits, group in product((2, 3, 4, 5), (32, 64, 128))]
WANTED = 0.6


def swept(state: Path, options: argparse.Namespace) -> tuple[Sweep, list[Report]]:
    """Run the sweep; what it found and the reports of its builds."""
    out = state / "reports.json"
    command = [*BITSMITH, "sweep", "few-bits", "--bits", options.bits, "--random", "1", "--json", str(out)]
    command += [word for field in [f"rounds={options.rounds}", *options.set] for word in ("--set", field)]
    command += ["--metrics", options.metrics] if options.metrics else []
    environment = {**os.environ, "BITSMITH_HOME": str(state)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    pictures = [Path(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("front ")]
    if not pictures:
        sys.exit(max(done.returncode, 2))
    found = Sweep.model_validate_json(pictures[0].with_name("sweep.json").read_text())
    return found, [Report.model_validate(each) for each in json.loads(out.read_text())]


def kl(point: FrontPoint) -> str:
    """Value and half-width of the interval."""
    return f"{point.kl.value:.5f} ±{(point.kl.high - point.kl.low) / 2:.5f}"


def size(report: Report, whole: int) -> str:
    """Bytes of the linears, of the embedding, and of everything else in a file of so many bytes."""
    linears = sum(each.bytes for each in report.allocation if each.unit.startswith("layers."))
    ends = sum(each.bytes for each in report.allocation) - linears
    return f"{linears:,} + {ends:,} + {whole - linears - ends:,}"


def least(report: Report, best: FrontPoint | None) -> str:
    """What no plan can be expected to beat. A second round's bound is only about the formats next to the first plan."""
    if report.fit is None or report.rounds:
        return ""
    bound = float(str(report.certificate["bound"])) * report.fit.ratio.value
    return f"{bound:.5f} ({bound / best.kl.value:.2f})" if best else f"{bound:.5f}"


def plain_uniform(sweep: Sweep, most: int) -> FrontPoint | None:
    """The best uniform format of no more bytes among the plain integers."""
    plain = tuple(p for p in sweep.points if p.series != "uniform" or p.label in INTEGERS)
    return best_uniform(sweep.model_copy(update={"points": plain}), most)


def over(plan: FrontPoint, uniform: FrontPoint | None) -> str:
    """The uniform format, its KL, and that of the plan over it."""
    return f"{uniform.label} {uniform.kl.value:.5f}: **{plan.kl.value / uniform.kl.value:.2f}**" if uniform else "none"


def row(sweep: Sweep, report: Report, bits: float) -> tuple[dict[str, str], bool]:
    """A row of the table, and whether the plan is what was wanted."""
    at = {p.series: p for p in sweep.points if p.bits == bits and p.series != "random"}
    others = {s: p for s, p in at.items() if s not in ("mixed", "allocated", "greedy")}
    plan, best = at["allocated"], best_uniform(sweep, at["allocated"].bytes)
    plain = plain_uniform(sweep, plan.bytes)
    above = [p for p in of_series(sweep, "uniform") if p.bytes > plan.bytes]
    random = sorted(p.kl.value for p in sweep.points if p.series == "random" and p.bits == bits)
    cells = {
        "bits": f"{bits:g}",
        "linears + embedding + rest, bytes": size(report, plan.bytes),
        "plan": kl(plan),
        "best uniform of no more bytes: plan over it": over(plan, best),
        "of plain integers": "the same" if plain == best else over(plan, plain),
        "least": least(report, best),
        "greedy": f"{at['greedy'].kl.value:.5f}",
        "random": f"{random[len(random) // 2]:.5f}" if random else "",
        **{name: f"{point.kl.value:.5f}" for name, point in others.items()},
        "predicted": f"{report.predicted_kl:.5f}",
        "adds up": f"{report.fit.ratio.value:.2f}" if report.fit else "",
    }
    greedy = at["greedy"].kl.value
    reached = plan.kl.low <= min([greedy, *(point.kl.value for point in others.values())])
    return cells, reached and (best is None or plan.kl.value <= (WANTED if above else 1.0) * best.kl.value)


def print_table(rows: list[dict[str, str]]) -> None:
    """Markdown."""
    print("| " + " | ".join(rows[0]) + " |\n|" + " --- |" * len(rows[0]))
    for each in rows:
        print("| " + " | ".join(each.values()) + " |")


def main() -> int:
    """Print the tables; 1 if some budget is not what was wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, help="state folder to use and keep (default: a temporary one)")
    parser.add_argument("--bits", default="2.35,2.5,3,3.5,4")
    parser.add_argument("--metrics", default="")
    parser.add_argument("--rounds", type=int, choices=(1, 2), default=1)
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        state = options.state or Path(temporary)
        state.mkdir(parents=True, exist_ok=True)
        sweep, reports = swept(state.absolute(), options)
        found = [row(sweep, report, bits) for bits, report in zip(sweep.bits, reports, strict=True)]
        print_table([cells for cells, _ in found])
        print()
        for bits, report in zip(sweep.bits, reports, strict=True):
            for each in report.rounds:
                word = "kept" if each.kept else "not kept"
                print(f"{bits:g} bits, round {each.round}: KL to choose on {each.measured.value:.5f}, {word}")
        if sweep.trend is not None:
            print(f"measured = {sweep.trend.factor:.3f} x predicted ^ {sweep.trend.slope:.3f}")
        missed = [cells["bits"] for cells, reached in found if not reached]
        print("every figure reached" if not missed else f"missed at {', '.join(missed)} bits")
    return min(len(missed), 1)


if __name__ == "__main__":
    sys.exit(main())
