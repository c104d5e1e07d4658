"""Time of the feedback solver beside the bare matrix work it cannot avoid, in one process, as a ratio.

    python tests/benchmarks/feedback.py [--inputs 2048] [--outputs 2048] [--repeat 3] [--threads 1]

Bare work of the solver: one fp64 Cholesky factorisation, and the fp32 products that carry each block's errors to the
inputs behind it. The classical form also inverts, so its bare work (Cholesky, inverse, Cholesky, products) is printed
too. Best of `repeat` interleaved runs of each, since other programs share the machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from schemas.format import Affine
from schemas.quantize import Feedback
from steps.quantize.fits.minmax import minmax
from steps.quantize.solvers.feedback import feedback
from steps.step import Env

BLOCK = 128


def problem(inputs: int, outputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and a Hessian whose spectrum decays over two decades."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(inputs, inputs, generator=generator) * torch.logspace(0, -2, inputs)[:, None]
    x = torch.randn(2 * inputs, inputs, generator=generator) @ mix
    return torch.randn(outputs, inputs, generator=generator), x.T @ x / inputs


def products(W_IO: torch.Tensor, M_II: torch.Tensor) -> None:
    """The block products alone."""
    for start in range(0, len(W_IO), BLOCK):
        stop = min(start + BLOCK, len(W_IO))
        W_IO[stop:].addmm_(M_II[start:stop, stop:].T, W_IO[start:stop])


def bare(W_OI: torch.Tensor, H_II: torch.Tensor) -> None:
    """The feedback form's matrix work."""
    M_II = torch.linalg.cholesky(H_II.double()).to(W_OI.dtype)
    products(W_OI.T.contiguous(), M_II.T)


def bare_with_inverse(W_OI: torch.Tensor, H_II: torch.Tensor) -> None:
    """The update form's matrix work."""
    inverse_II = torch.cholesky_inverse(torch.linalg.cholesky(H_II.double()))
    U_II = torch.linalg.cholesky(inverse_II, upper=True).to(W_OI.dtype)
    products(W_OI.T.contiguous(), U_II)


def best(tasks: dict[str, Callable[[], object]], repeat: int) -> dict[str, float]:
    """Least seconds of each task over `repeat` interleaved rounds."""
    seconds = dict.fromkeys(tasks, float("inf"))
    for _ in range(repeat):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def main() -> None:
    """Print seconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("inputs", 2048), ("outputs", 2048), ("repeat", 3), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    W_OI, H_II = problem(args.inputs, args.outputs)
    H_II.diagonal().add_(0.01 * H_II.diagonal().mean())
    params = minmax(W_OI, H_II.diagonal(), Affine(bits=3, group_size=128), torch.bfloat16)
    spec, warm = Feedback(kind="feedback", block_size=BLOCK), Env()
    tasks: dict[str, Callable[[], object]] = {
        "bare work": lambda: bare(W_OI, H_II),
        "bare work of the update form": lambda: bare_with_inverse(W_OI, H_II),
        "solver, first format of a unit": lambda: feedback(spec, W_OI, H_II, params, Env()),
        "solver, every further format": lambda: feedback(spec, W_OI, H_II, params, warm),
    }
    seconds = best(tasks, args.repeat)
    print(f"{args.outputs} outputs x {args.inputs} inputs, {args.threads} thread(s), best of {args.repeat}")
    for name, value in seconds.items():
        print(f"  {name:32s} {value:8.3f} s   {value / seconds['bare work']:5.2f} x bare")


if __name__ == "__main__":
    main()
