"""What a step of refinement costs beside the bare passes, and the memory of refining one block beside its estimate.

    OMP_NUM_THREADS=1 PYTHONPATH=.:tests/support python tests/benchmarks/refine_cost.py [--batch 4 16] [--hidden 1024]

Bare is the forward and backward pass of the student with weights that are at hand, and the forward pass of the teacher;
a step adds rounding, scales, norms and the optimizer; the goal is 1.3. The second figure adds a step's share of the
checks: the default's held-out windows every `check_every` steps, without the pass of the original over them, which is
made once. Seconds are of the processor, medians of alternating repeats. Memory is what a process of its own grows by
while it refines one block by itself (`reconstruct`; Linux alone tells); the goal is 1.2 of the estimate that pre-flight
goes by.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from models import block_view, tiny_config, tiny_tokens, tiny_transformer, value_of
from models import model_tensors as tensors_of
from selections import selection_of

from schemas.distill import Distill, Logits, Reconstruct
from steps.distill import reconstruct
from steps.distill.build import build_optimizer
from steps.distill.divergence import divergence
from steps.distill.memory import block_bytes
from steps.distill.student import student
from steps.distill.whole import Pair, WholeTask, weights_of
from steps.model.overlay import overlay
from steps.model.positions import take
from steps.model.stream import Stream
from steps.model.whole import all_blocks
from steps.step import Env, Output
from steps.verify.folder_model import FolderModel

DEMO = Path("pipelines/demo/model")
LENGTH, REPEATS, MIB = 256, 7, 2**20


def step_cost(batch: int) -> tuple[float, float, float]:
    """Seconds of a whole step, of a check and of the bare passes, on the demo model with 3-bit codes."""
    folder = FolderModel(DEMO)
    model = Output(folder.meta, {name: folder.tensors[name] for name in folder.meta["shapes"]})
    spec = Distill(step="distill")
    selection, tokens = selection_of(model, "int3-g64"), tiny_tokens(batch + spec.held_out, LENGTH, ragged=False)
    original = Stream(model)
    pair = Pair(original, Stream(overlay(model, selection)), all_blocks(original))
    trained = student(spec, model, selection, range(original.blocks), True, "cpu")
    windows, kept_out = range(batch), range(batch, batch + spec.held_out)
    task = WholeTask((Logits(kind="logits"),), pair, trained, trained, tokens, kept_out)
    rated = trained.variables(spec, 100)
    optimizer = build_optimizer(spec.optimizer, [variable for variable, _ in rated])
    for group, (_, rate) in zip(optimizer.param_groups, rated, strict=True):
        group["lr"] = rate
    part = take(tokens, windows)
    per_block, norm = weights_of(trained, original.blocks, hard=False)
    leaves = [{n: w.detach().requires_grad_() for n, w in weights.items()} for weights in per_block]

    def whole() -> None:
        optimizer.zero_grad()
        task.loss(windows).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        for matrix in trained.matrices.values():
            matrix.code.project()

    def check() -> None:
        task.measure(trained)

    def bare() -> None:
        original_PV = pair.original.logits(pair.target(part))
        student_PV = pair.quantized.logits(pair.hidden((leaves, {n: w.detach() for n, w in norm.items()}), part))
        divergence(Logits(kind="logits"), original_PV, student_PV).backward()  # type: ignore[no-untyped-call]
        for weights in leaves:
            for weight in weights.values():
                weight.grad = None

    rounds = [(seconds(whole), seconds(check), seconds(bare)) for _ in range(REPEATS + 1)][1:]
    whole_s, check_s, bare_s = (statistics.median(column) for column in zip(*rounds, strict=True))
    return whole_s, check_s, bare_s


def seconds(call: Callable[[], None]) -> float:
    """Of the processor."""
    started = time.process_time()
    call()
    return time.process_time() - started


def refine_block(hidden: int) -> None:
    """In a process of its own: refine a block by itself; prints by how many MiB memory grew, and the estimate."""
    sizes = {"hidden_size": hidden, "intermediate_size": hidden * 11 // 4, "num_hidden_layers": 1, "vocab_size": 512}
    heads = {"num_attention_heads": hidden // 64, "num_key_value_heads": hidden // 64, "head_dim": 64}
    config = tiny_config(**sizes, **heads, max_position_embeddings=LENGTH)
    model = block_view(value_of(config, tensors_of(tiny_transformer(config), torch.bfloat16)), 0)
    selection, tokens = selection_of(model, "int3-g64"), tiny_tokens(40, LENGTH)
    spec = Reconstruct(step="reconstruct", tokens=6 * 4 * LENGTH, batch=4, held_out=8, check_every=2)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far, of making the inputs, is forgotten
    before = memory("VmRSS")
    reconstruct.run(spec, {"model": model, "selection": selection, "tokens": tokens}, Env())
    estimate = block_bytes(spec, model.meta, 0, spec.batch * LENGTH, 40 * LENGTH) / MIB
    print(memory("VmHWM") - before, estimate)


def memory(name: str) -> float:
    """MiB of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def measured(hidden: int) -> tuple[float, float]:
    """Growth and estimate in MiB."""
    command = [sys.executable, __file__, "--hidden", str(hidden), "--child"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    grown, estimate = done.stdout.split()[-2:]
    return float(grown), float(estimate)


def main() -> int:
    """0 when both goals are reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        refine_block(options.hidden)
        return 0
    worst, spec = 0.0, Distill(step="distill")
    for batch in options.batch:
        whole, check, bare = step_cost(batch)
        worst = max(worst, whole / bare)
        print(f"{batch} windows of {LENGTH}: step {whole:.3f} s, bare passes {bare:.3f} s, ratio {whole / bare:.2f}")
        share = check / spec.check_every
        print(f"  with checks of {check:.3f} s each: {whole + share:.3f} s, ratio {(whole + share) / bare:.2f}")
    grown, estimate = measured(options.hidden)
    print(
        f"one block, {options.hidden} wide: {grown:.0f} MiB more, estimate {estimate:.0f}, ratio {grown / estimate:.2f}"
    )
    return int(worst > 1.3 or grown > 1.2 * estimate)


if __name__ == "__main__":
    sys.exit(main())
