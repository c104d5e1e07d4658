"""The demo through the command line: cold, warm, another budget, and what orchestration adds to the steps' own time.

    python tests/benchmarks/demo.py [--keep FOLDER]

Prints seconds and ratios of one run. The steps' own time is what the traces recorded around `run` and the store's
writes; the rest of the wall clock is start-up, Prefect, MLflow, plots and the store's reads.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from store.open import Store

BITSMITH = Path(sys.executable).with_name("bitsmith")
OTHER_BUDGETS = ((3.25, "int3-g64"), (4.25, "int4-g64"))
"""Bits per weight of a uniform format, and its name."""


def run(state: Path, *words: str) -> tuple[float, dict[str, Any]]:
    """Wall seconds and report of one `bitsmith run demo`."""
    out = state / "report.json"
    started = time.perf_counter()
    command = [str(BITSMITH), "run", "demo", "--json", str(out), *words]
    done = subprocess.run(
        command, env={**os.environ, "BITSMITH_HOME": str(state)}, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - started
    if done.returncode not in (0, 1):
        sys.exit(done.stderr)
    return seconds, json.loads(out.read_text())


def step_seconds(state: Path) -> float:
    """Seconds inside steps, over all traces of the store."""
    traces = Store(str(state / "store")).traces.all().values()
    return sum(float(trace.facts["seconds"]) for trace in traces)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--keep", type=Path, help="state folder to use and keep (default: a temporary one)")
    keep = parser.parse_args().keep
    with tempfile.TemporaryDirectory() as temporary:
        state = keep or Path(temporary)
        state.mkdir(parents=True, exist_ok=True)
        cold, report = run(state)
        steps = step_seconds(state)
        units = sum(node["units_computed"] for node in report["nodes"])
        print(
            f"cold {cold:.1f} s, steps {steps:.1f} s of it; {1000 * (cold - steps) / units:.0f} ms a unit beside them"
        )
        warm, report = run(state)
        print(
            f"warm {warm:.1f} s, {sum(n['units_computed'] for n in report['nodes'])} units; {warm / cold:.1%} of cold"
        )
        for bits, name in OTHER_BUDGETS:
            seconds, report = run(state, "--set", f"budget.bits_per_weight={bits + 0.01}")
            done = {n["id"]: n["units_computed"] for n in report["nodes"]}
            verdict = next(n["seconds"] for n in report["nodes"] if n["id"] == "verdict")
            print(
                f"budget of {name}: {seconds:.1f} s, verify {verdict:.1f} s, candidates computed {done['candidates']}"
            )
            for contrast in report["contrasts"]:
                if contrast["second"] == "uniform":
                    ratio = contrast["ratio"]
                    span = f"[{ratio['low']:.3f}, {ratio['high']:.3f}]"
                    print(f"  KL of {contrast['first']} / {report['uniform_format']}: {ratio['value']:.3f} {span}")


if __name__ == "__main__":
    main()
