"""Builds that are killed with -9 again and again: what each kill cost, and whether the result is the undisturbed one.

    python tests/benchmarks/crash.py [BUILDS] [KILLS]

Ten tiny builds, killed ten times each, over one Prefect server and one MLflow server; exits with 1 if any differs.
`lost` is what was computed but not yet durable when the kill came; `again` must be 0: results that were in the store
and yet were computed again. Prints no times but the total: a loaded machine spoils them.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from builds import write_recipe
from crashes import ROOT, Attempt, Bench, deterministic, torture

from pipelines.services import down, up

ROW = "{:>5} {:>6} {:>9} {:>9} {:>7} {:>6} {:>6} {:>6}  {}"


def row(number: int, attempts: Sequence[Attempt], same: bool) -> str:
    """Figures of one build."""
    killed = [a for a in attempts if a.code]
    begun = [key for a in attempts for key in a.begun]
    idle = sum(1 for a in killed if not a.begun and len(a.present) < len(set(begun)))
    finishing = sum(1 for a in killed if len(a.present | set(a.begun)) == len(set(begun)))
    again, lost = sum(len(a.again) for a in attempts), len(begun) - len(set(begun))
    counts = (len(killed), idle, len(killed) - idle - finishing, finishing, len(set(begun)), lost, again)
    return ROW.format(number, *counts, "same" if same else "DIFFERENT")


def main() -> int:
    """Print the table."""
    builds, kills = (int(word) for word in (sys.argv[1:] + ["10", "10"][len(sys.argv) - 1 :]))
    folder = Path(tempfile.mkdtemp(prefix="crash-"))
    begun, good = time.monotonic(), True
    try:
        services = up(ROOT, folder / "services")
        recipe = write_recipe(folder / "recipe")
        undisturbed = Bench(folder / "undisturbed", recipe, services)
        assert undisturbed.run().code == 0
        print(ROW.format("build", "kills", "starting", "computing", "ending", "items", "lost", "again", "result"))
        for number in range(builds):
            bench = Bench(folder / str(number), recipe, services)
            attempts = torture(bench, random.Random(100 + number), kills)
            same = deterministic(bench.store) == deterministic(undisturbed.store)
            same = same and bench.exported() == undisturbed.exported()
            good = good and same and not any(a.again for a in attempts)
            print(row(number, attempts, same), flush=True)
        print(f"{time.monotonic() - begun:.0f} s")
    finally:
        down(folder / "services", say=lambda line: None)
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
