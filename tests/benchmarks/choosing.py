"""How often a training of no effect is kept, by how its step is chosen and judged: a simulation.

    PYTHONPATH=. python tests/benchmarks/choosing.py [--trials 1000] [--windows 6 12 24]

Losses of all checks differ from the input's by noise alone, a share of which is a window's own and the same at every
check. Nominal is 2.5 %: the side of the interval on which a training counts as better.
"""

from __future__ import annotations

import argparse

import torch
from readme_table import lines_of

from steps.distill.judge import Rows, best_of, crossed, judge, mean

CHECKS = (1, 6, 30)
SHARED = (0.0, 0.8)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--windows", type=int, nargs="+", default=[6, 12, 24])
    options = parser.parse_args()
    rows = [
        {"windows": str(windows), "checks": str(checks), "noise shared by checks": f"{shared:.0%}"}
        | {name: f"{share:.1%}" for name, share in kept(windows, checks, shared, options.trials).items()}
        for windows in options.windows
        for checks in CHECKS
        for shared in SHARED
    ]
    print("\n".join(lines_of(rows)))


def kept(windows: int, checks: int, shared: float, trials: int) -> dict[str, float]:
    """Share of trainings that are kept, by way of judging."""
    generator, found = torch.Generator().manual_seed(0), {"where it was chosen": 0, "by the other half": 0}
    for _ in range(trials):
        own = torch.randn(checks, windows, generator=generator, dtype=torch.float64)
        common = torch.randn(windows, generator=generator, dtype=torch.float64)
        losses = torch.cat([torch.zeros(1, windows), shared**0.5 * common + (1 - shared) ** 0.5 * own])
        each = [_rows(loss) for loss in losses]
        best = best_of([mean(rows) for rows in each])
        found["where it was chosen"] += best > 0 and judge(each[0], each[best], 0, "KL")[1]
        found["by the other half"] += best > 0 and judge(each[0], crossed(each), 0, "KL")[1]
    return {name: count / trials for name, count in found.items()}


def _rows(losses: torch.Tensor) -> Rows:
    return [{"tokens": 1.0, "loss": 10 + loss} for loss in losses.tolist()]


if __name__ == "__main__":
    main()
