"""What several widths in one matrix are worth on the demo model: by matrix, and to the integer program.

    OMP_NUM_THREADS=1 PYTHONPATH=.:tests/support python tests/benchmarks/mixed.py --keep FOLDER [--write]

First the solver's loss over ||W x||^2, mean over units: layouts by the conditional weight of the solver's own loss, by
1 / [H^-1]_jj, by H_jj, and at random (groups only), beside the true bits per weight. Then plans with and without these
formats at low budgets, scored by `fisher`, measured on held-out text. `--write` puts the tables into
steps/allocate/README.md.
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from bench import RESAMPLES, Bench, kl_ratio, mean_kl, measured, open_bench, plan_of, scored, write

from pipelines.methods.rounding import gptq
from schemas.artifact import Unit
from schemas.format import Mixed, PerColumn, read_format
from schemas.quantize import Feedback
from steps.model.structure import units
from steps.pack.sizes import unit_bytes
from steps.quantize.mixed import layout, quantize
from steps.quantize.shared_inputs import hessian_of
from steps.quantize.solvers.factor import factor_of
from steps.step import Env
from steps.verify.bootstrap import draw

UNIFORM = ["int2-g32", "int2-g64", "int2-g128", "int3-g32", "int3-g64", "int3-g128", "int4-g64", "int4-g128"]
MIXED = ["int2+4-g32@2.5", "int2+4-g64@2.5", "baq2.25-g128", "baq2.5-g128", "baq3-g128"]
BUDGETS = (2.35, 2.5, 2.75, 3.0)
BEGIN, END = "<!-- mixed.py -->", "<!-- end of mixed.py -->"

Weights = Callable[[Feedback, torch.Tensor, torch.dtype, Env], torch.Tensor]


def unconditional(solver: Any, H_II: torch.Tensor, dtype: torch.dtype, env: Env) -> torch.Tensor:
    """H_jj."""
    return H_II.diagonal().double()


def inverse(solver: Any, H_II: torch.Tensor, dtype: torch.dtype, env: Env) -> torch.Tensor:
    """1 / [H^-1]_jj of the damped Hessian."""
    factor = factor_of(solver, H_II, dtype, env)
    identity_II = torch.eye(len(H_II), dtype=torch.float64)
    M_inverse_II = torch.linalg.solve_triangular(factor.M_II.double(), identity_II, upper=True, unitriangular=True)
    return (1 / (M_inverse_II.square() / factor.D_I[:, None]).sum(0))[factor.inverse_I]


def arbitrary(solver: Any, H_II: torch.Tensor, dtype: torch.dtype, env: Env) -> torch.Tensor:
    """Weights that differ so much and so arbitrarily that nothing else counts: a random layout."""
    order_I = torch.randperm(len(H_II), generator=torch.Generator().manual_seed(0))
    return 1e6 ** (order_I.double() / len(order_I))


LAYOUTS: Mapping[str, Weights] = {
    "solver's own": layout.input_weights,
    "1/[H^-1]_jj": inverse,
    "H_jj": unconditional,
    "random": arbitrary,
}


def loss_table(bench: Bench) -> list[str]:
    """Markdown: a row per mixed format; uniform formats stand beside in the second column of losses."""
    model, of_blocks, env = bench.ports["model"], bench.ports["statistics"].children, Env()
    found = units(model.meta["config"], model.meta["shapes"])
    lines = ["| format | bits per weight | " + " | ".join(LAYOUTS) + " |", "|---|---:|" + "---:|" * len(LAYOUTS)]
    total = sum(o * i for u in found for o, i in u.shapes)
    for name in UNIFORM:
        items = [bench.ports["candidates"].children[f"{u.name}/{name}"] for u in found]
        losses = [
            _relative(bench, u, sum(f["loss"] for f in c.meta["members"].values()))
            for u, c in zip(found, items, strict=True)
        ]
        size = sum(unit_bytes("bitsmith", read_format(name), u) for u in found)
        lines.append(f"| {name} | {8 * size / total:.3f} | {statistics.mean(losses):.5f} |" + " |" * (len(LAYOUTS) - 1))
    for name in MIXED:
        form, cells = read_format(name), []
        assert isinstance(form, Mixed | PerColumn)
        for weights in LAYOUTS.values():
            quantize.input_weights = weights  # type: ignore[assignment]
            losses = []
            for unit in found:
                W_OI = torch.cat([model.tensors[f"{m}.weight"].float() for m in unit.members])
                H_II = hessian_of(unit, of_blocks[str(unit.block)], "cpu")
                _, solved = quantize.quantize_mixed(form, gptq(), W_OI, H_II, torch.bfloat16, env)
                losses.append(_relative(bench, unit, float(solved.loss_O.sum())))
            cells.append(f"{statistics.mean(losses):.5f}")
        quantize.input_weights = layout.input_weights
        size = sum(unit_bytes("bitsmith", form, u) for u in found)
        lines.append(f"| {name} | {8 * size / total:.3f} | " + " | ".join(cells) + " |")
    return lines


def _relative(bench: Bench, unit: Unit, loss: float) -> float:
    """loss / E ||W x||^2."""
    H_II = hessian_of(unit, bench.ports["statistics"].children[str(unit.block)], "cpu").double()
    W_OI = torch.cat([bench.ports["model"].tensors[f"{m}.weight"].double() for m in unit.members])
    return loss / (((W_OI @ H_II) * W_OI).sum().item() / 2)


def plan_table(bench: Bench) -> list[str]:
    """Markdown: KL of the plan among uniform formats, and among all; what the latter chose."""
    metas = scored(bench, "fisher", bench.ports)["metas"]
    lines = ["| budget | uniform formats, KL | all, KL | ratio | chosen |", "|---:|---:|---:|---:|---|"]
    for bits in BUDGETS:
        plans = [plan_of(bench, metas, bits, names).meta["plan"] for names in (UNIFORM, [*UNIFORM, *MIXED])]
        rows = [measured(bench, plan) for plan in plans]
        count_BD = draw(len(rows[0]), RESAMPLES, 0)
        kl = [f"{mean_kl(count_BD, each):.5f}" for each in rows]
        chosen = ", ".join(f"{count} {name}" for name, count in Counter(plans[1].values()).most_common())
        lines.append(f"| {bits} | {kl[0]} | {kl[1]} | {kl_ratio(rows[1], rows[0], count_BD)} | {chosen} |")
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--score-windows", type=int, default=24)
    parser.add_argument("--evaluate-windows", type=int, default=96)
    options = parser.parse_args()
    bench = open_bench(options.keep, options.score_windows, options.evaluate_windows, [*UNIFORM, *MIXED])
    text = "\n\n".join("\n".join(part(bench)) for part in (plan_table, loss_table))
    text += f"\n\nScored on {options.score_windows} windows of text, measured on {options.evaluate_windows} others."
    print(text)
    if options.write:
        write(text, BEGIN, END)


if __name__ == "__main__":
    main()
