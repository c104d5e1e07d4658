"""Methods of learned rounding as whole builds of the demo: built, packed, verified, side by side.

    OMP_NUM_THREADS=1 PYTHONPATH=. python tests/benchmarks/refine_methods.py --keep FOLDER [--tokens 98304]
        [--bits 3.26] [--text SOURCE] [--only NAME ...] [--write]

Each row is one `bitsmith run demo`; all have the same budget, formats and tokens to train on, each token used once
where the text suffices. `method: autoround` and its like start from candidates rounded to nearest, as their papers do,
and are planned from those; `method: gptq, distill: {method: autoround}` refines the plan of the feedback solver's. The
text is the split that the demo model was trained on, unless `--text` names another; KL is that of the evaluation text,
read from the reports, with 95 % intervals over documents. Reports are kept in FOLDER, and a build that is there is not
made again. `--write` puts the table into README.md. Seconds are elapsed ones of the nodes that refine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from readme_table import lines_of, put
from refine_inputs import training_text

from schemas.base import digest_of
from schemas.distill import Distill, Whole
from schemas.recipe import Recipe
from schemas.report import Contrast, Interval, Report

BITSMITH = (sys.executable, "-m", "pipelines.cli")
ROWS: dict[str, tuple[str, str | None]] = {
    "the default": ("gptq", None),
    "`method: autoround`": ("autoround", None),
    "`method: discquant`": ("discquant", None),
    "`method: adaquant`": ("adaquant", None),
    "`distill: {method: autoround}`": ("gptq", "autoround"),
    "`distill: {method: discquant}`": ("gptq", "discquant"),
    "`distill: {method: adaquant}`": ("gptq", "adaquant"),
}
"""What a user writes -> (method, distill.method) of the recipe."""
REFINING = ("recoded", "distilled")


def main() -> None:
    """Build what is asked and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=98_304)
    parser.add_argument("--bits", type=float, default=3.26)
    parser.add_argument("--text", help="source of the text to train on")
    parser.add_argument("--only", nargs="+", choices=ROWS)
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    options = parser.parse_args()
    lines = lines_of([cells(name, built(options, *ROWS[name])) for name in options.only or ROWS])
    print("\n".join(lines))
    if options.write:
        put(lines, Path("README.md"), "refine_methods.py")


def built(options: argparse.Namespace, method: str, refinement: str | None) -> Report:
    """The report of one build, made once."""
    distill = {"tokens": options.tokens, "text": options.text or str(training_text(options.keep).absolute())}
    distill |= {"method": refinement} if refinement else {}
    fields = {"method": method, "distill": distill, "budget.bits_per_weight": options.bits}
    out = options.keep / f"report-{digest_of(fields)[:16]}.json"
    if not out.exists():
        words = [word for name, value in fields.items() for word in ("--set", f"{name}={json.dumps(value)}")]
        environment = {**os.environ, "BITSMITH_HOME": str(options.keep.absolute() / "state")}
        command = [*BITSMITH, "run", "demo", *words, "--json", str(out)]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode not in (0, 1):  # 1: a gate failed, which the table says
            sys.exit(done.returncode)
    return Report.model_validate_json(out.read_text())


def cells(name: str, report: Report) -> dict[str, str]:
    """A row of the table."""
    trained = report.distilled
    assert trained is not None and report.uniform is not None
    failed = [gate.name for gate in report.gates if not gate.passed]
    return {
        "method": name,
        "KL of the plan": f"{report.allocated.kl.value:.5f}",
        "KL packed": f"{report.mixed.kl.value:.5f} ±{(report.mixed.kl.high - report.mixed.kl.low) / 2:.5f}",
        "packed / plan": ratio(_contrast(report, "mixed", "allocated").ratio) if trained.step_kept else "input kept",
        "best uniform": f"{report.uniform.kl.value:.5f} {report.uniform_format}",
        "packed / uniform": ratio(_contrast(report, "mixed", "uniform").ratio),
        "tokens": tokens(report),
        "passes": f"{trained.passes:.2f}",
        "seconds": f"{sum(node.seconds for node in report.nodes if node.id in REFINING):.0f}",
        "gates": f"{', '.join(failed)} FAILED" if failed else f"{len(report.gates)} passed",
    }


def tokens(report: Report) -> str:
    """Trained on; blocks that are trained one after the other each see the whole text."""
    spec = Recipe.model_validate(report.recipe_document).nodes["distilled"].spec
    assert isinstance(spec, Distill) and report.distilled is not None
    return f"{report.distilled.tokens:,}" if isinstance(spec.scope, Whole) else f"{spec.tokens:,} per block"


def ratio(value: Interval) -> str:
    """With its interval."""
    return f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"


def _contrast(report: Report, first: str, second: str) -> Contrast:
    return next(each for each in report.contrasts if (each.first, each.second) == (first, second))


if __name__ == "__main__":
    main()
