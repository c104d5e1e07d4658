"""Builds that are killed with -9 again and again: what each kill cost, and whether the result is the undisturbed one.

    python tests/benchmarks/crash.py [--builds 10] [--kills 10] [--table FILE] [--minutes M]

Ten tiny builds of all kinds of steps, killed ten times each, over one Prefect server and one MLflow server. `lost` is
what had begun and was not in the store after the kill, `most` the most that one kill cost (1: the item in flight),
`again` what was in the store and yet was computed again (must be 0). Exits with 1 if any result differs. With --table,
builds that are in that file are not repeated, and none is begun after M minutes: the same command goes on. Prints no
times: a loaded machine spoils them.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from builds import write_recipe
from crashes import ROOT, Attempt, Bench, deterministic, torture

from pipelines.services import ServiceState, down, up

ROW = "{:>7} {:>6} {:>9} {:>10} {:>7} {:>6} {:>5} {:>5} {:>6}  {}"
HEAD = ROW.format("build", "kills", "starting", "computing", "ending", "items", "lost", "most", "again", "result")


@dataclass(frozen=True)
class Row:
    """Figures of one build: kills by what they hit, distinct items, and what the kills cost."""

    build: int
    kills: int
    starting: int
    computing: int
    ending: int
    items: int
    lost: int
    most: int
    again: int
    same: bool

    @property
    def good(self) -> bool:
        """As promised."""
        return self.same and self.most <= 1 and not self.again

    def __str__(self) -> str:
        *counts, same = asdict(self).values()
        return ROW.format(*counts, "same" if same else "DIFFERENT")


def row(number: int, attempts: Sequence[Attempt], same: bool) -> Row:
    """Figures of one build."""
    killed = [a for a in attempts if a.code]
    items = len({key for a in attempts for key in a.begun})
    starting = sum(1 for a in killed if not a.begun and len(a.present) < items)
    ending = sum(1 for a in killed if len(a.present | set(a.begun)) == items)
    again = sum(len(a.again) for a in attempts)
    lost = [len(set(a.begun) - after.present) for a, after in pairwise(attempts)]
    computing = len(killed) - starting - ending
    return Row(number, len(killed), starting, computing, ending, items, sum(lost), max(lost), again, same)


def total(rows: Sequence[Row]) -> str:
    """The last line."""
    sums = [sum(getattr(r, name) for r in rows) for name in ("kills", "starting", "computing", "ending")]
    costs = (max(r.items for r in rows), sum(r.lost for r in rows), max(r.most for r in rows))
    word = "same" if all(r.same for r in rows) else "DIFFERENT"
    return ROW.format("all", *sums, *costs, sum(r.again for r in rows), word)


@contextmanager
def benches() -> Iterator[tuple[Path, Path, ServiceState]]:
    """A folder, the recipe and the servers."""
    folder = Path(tempfile.mkdtemp(prefix="crash-"))
    try:
        yield folder, write_recipe(folder / "recipe"), up(ROOT, folder / "services", say=lambda line: None)
    finally:
        down(folder / "services", say=lambda line: None)
        shutil.rmtree(folder, ignore_errors=True)


def measure(numbers: Sequence[int], kills: int, until: float) -> Iterator[Row]:
    """One row per build, as long as there is time."""
    with benches() as (folder, recipe, services):
        undisturbed = Bench(folder / "undisturbed", recipe, services)
        assert undisturbed.run(fresh=True).code == 0
        for number in numbers:
            if time.monotonic() > until:
                return
            bench = Bench(folder / str(number), recipe, services)
            attempts = torture(bench, random.Random(100 + number), kills)
            same = deterministic(bench.store) == deterministic(undisturbed.store)
            yield row(number, attempts, same and bench.exported() == undisturbed.exported())
            shutil.rmtree(bench.folder)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--builds", type=int, default=10)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    options = parser.parse_args()
    known = options.table.read_text().splitlines() if options.table and options.table.exists() else []
    rows = [Row(**json.loads(line)) for line in known]
    missing = sorted(set(range(options.builds)) - {each.build for each in rows})
    print("\n".join([HEAD, *map(str, rows)]), flush=True)
    for each in measure(missing, options.kills, time.monotonic() + 60 * options.minutes) if missing else ():
        rows.append(each)
        print(each, flush=True)
        if options.table:
            with options.table.open("a") as file:
                file.write(json.dumps(asdict(each)) + "\n")
    print(total(rows))
    return 0 if all(each.good for each in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
