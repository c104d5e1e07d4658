"""What fitting scales anew to the codes is worth on the demo model: loss, KL of the format used everywhere, seconds.

    OMP_NUM_THREADS=1 PYTHONPATH=.:tests/support python tests/benchmarks/refits.py --keep FOLDER [--write]

Loss is the solver's over E ||W x||^2, mean over units; KL is on held-out text. Seconds are CPU seconds of all units on
one core, the Hessians' factors included. `--write` puts the table into steps/quantize/README.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from bench import Bench, mean_kl, measured, open_bench, uniform_plan, write

from pipelines.methods.rounding import gptq
from schemas.artifact import Unit
from schemas.format import read_format
from schemas.quantize import QuantizeUnit
from steps.model.structure import units
from steps.quantize.shared_inputs import hessian_of
from steps.quantize.unit import run
from steps.step import Env, Output
from steps.verify.bootstrap import draw

FORMATS = ("int2-g64", "int2-g128", "int3-g64", "int3-g128", "int4-g128", "baq2.5-g128", "tq1_0")
TIMES = (0, 1, 2, 4)
BEGIN, END = "<!-- refits.py -->", "<!-- end of refits.py -->"


def of_units(bench: Bench) -> Iterator[tuple[Unit, dict[str, Output]]]:
    """Every unit, and the inputs of its quantization."""
    model, statistics_ = bench.ports["model"], bench.ports["statistics"].children
    for unit in units(model.meta["config"], model.meta["shapes"]):
        meta = {**model.meta, "unit": unit.model_dump(mode="json")}
        yield unit, {"model": Output(meta=meta, tensors=model.tensors), "statistics": statistics_[str(unit.block)]}  # type: ignore[dict-item]


def seconds(bench: Bench, name: str, refits: int) -> float:
    """CPU seconds to quantize every unit."""
    spec = QuantizeUnit(format=read_format(name), rounding=gptq().model_copy(update={"refits": refits}))
    started = time.process_time()
    for _, inputs in of_units(bench):
        run(spec, inputs, Env())
    return time.process_time() - started


def loss(bench: Bench, name: str) -> float:
    """The solver's loss over E ||W x||^2, mean over units."""
    shares = []
    for unit, inputs in of_units(bench):
        H_II = hessian_of(unit, inputs["statistics"], "cpu").double()
        W_OI = torch.cat([inputs["model"].tensors[f"{m}.weight"].double() for m in unit.members])
        recorded = bench.ports["candidates"].children[f"{unit.name}/{name}"].meta["members"]
        shares.append(sum(m["loss"] for m in recorded.values()) / (((W_OI @ H_II) * W_OI).sum().item() / 2))
    return statistics.mean(shares)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--evaluate-windows", type=int, default=96)
    options = parser.parse_args()
    benches = {times: open_bench(options.keep, 2, options.evaluate_windows, FORMATS, times) for times in TIMES}
    count_BD = draw(len(measured(benches[0], uniform_plan(benches[0], FORMATS[0]))), 1, 0)
    lines = ["| format | " + " | ".join(f"{times} refits" for times in TIMES) + " |", "|---|" + "---:|" * len(TIMES)]
    for name in FORMATS:
        cells = []
        for times, bench in benches.items():
            kl = mean_kl(count_BD, measured(bench, uniform_plan(bench, name)))
            cells.append(f"{loss(bench, name):.5f}, KL {kl:.5f}, {seconds(bench, name, times):.1f} s")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    if options.write:
        write("\n".join(lines), BEGIN, END, Path("steps/quantize/README.md"))


if __name__ == "__main__":
    main()
