"""The training loop: one for every student, loss, scope and optimizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from schemas.distill import Training
from schemas.errors import InputError
from steps.distill.build import Arithmetic, build_arithmetic, build_optimizer, is_bf16
from steps.distill.judge import KEPT_INPUT, best_of, crossed, judge, mean
from steps.distill.resume import Progress, load, save
from steps.distill.schedule import share, steps_of, windows_of
from steps.distill.student import tensors_of
from steps.distill.task import Task
from steps.step import Env

CHECKS_PER_SAVE = 2
"""A killed training loses at most so many checks' worth of steps."""


@dataclass(frozen=True)
class Outcome:
    """What a training gave: tensors to store (none when the input stays) and facts for the report."""

    tensors: dict[str, torch.Tensor]
    facts: dict[str, Any]


def train(spec: Training, task: Task, windows: list[int], length: int, env: Env, name: str = "training") -> Outcome:
    """Spend the token budget on `windows` of `length` tokens, each used once before any is used again.

    A check measures the student as it would be stored, on windows never trained on. The best one is kept if the paired
    95 % bootstrap interval against the input lies below 0, each window measured at the check that the windows of the
    other half choose; else the input stays. InputError when a loss is not finite.
    """
    steps = steps_of(spec, length)
    rated = task.student.variables(spec, steps)
    variables, rates = [v for v, _ in rated], [r for _, r in rated]
    optimizer, arithmetic = build_optimizer(spec.optimizer, variables), build_arithmetic(spec.precision, env.device)
    path = None if env.resume is None else env.resume / f"{name}.safetensors"
    progress = Progress() if path is None else load(path, variables, optimizer, env.note)
    if not progress.curve:
        rows = task.measure(task.given)
        progress = Progress(curve=[{"step": 0, "held_out": mean(rows)}], checks=[rows])
    while progress.step < steps and not _enough(spec, progress):
        progress.step += 1
        factor = share(progress.step, steps, spec.schedule)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        batch = windows_of(progress.step, spec.batch, windows)
        progress.seen += len(batch)
        loss = _update(optimizer, arithmetic, task, batch, progress.step / steps)
        progress.losses.append(_finite(loss, progress, spec, factor))
        if progress.step % spec.check_every == 0 or progress.step == steps:
            _check(progress, task, spec, factor)
            if path is not None and progress.step % (CHECKS_PER_SAVE * spec.check_every) == 0:
                save(path, progress, variables, optimizer)
        env.progress(progress.step, steps, "steps")
    where = {"device": env.device, "precision": "bf16" if is_bf16(spec.precision, env.device) else "fp32"}
    outcome = _outcome(progress, task.measured, len(windows), length, spec)
    return Outcome(outcome.tensors, outcome.facts | where)


def _update(
    optimizer: torch.optim.Optimizer, arithmetic: Arithmetic, task: Task, windows: Sequence[int], done: float
) -> float:
    """One step; the loss before it."""
    optimizer.zero_grad()
    with arithmetic():
        loss = task.loss(windows)
    loss.backward()  # type: ignore[no-untyped-call]
    for matrix in task.student.matrices.values():
        matrix.code.shape_gradient(done)
    optimizer.step()
    for matrix in task.student.matrices.values():
        matrix.code.project()
    return loss.item()


def _check(progress: Progress, task: Task, spec: Training, factor: float) -> None:
    rows = task.measure(task.student)
    held_out = _finite(mean(rows), progress, spec, factor)
    trained = sum(progress.losses) / len(progress.losses)
    progress.curve.append({"step": progress.step, "held_out": held_out, "train": trained})
    progress.checks.append(rows)
    progress.losses = []
    if best_of(progress.held_out) == len(progress.curve) - 1:
        progress.best = tensors_of(task.student)


def _enough(spec: Training, progress: Progress) -> bool:
    """Whether the last `patience` checks were no better than the best of a trained student.

    The input is none: a method that rounds anew begins above it, and may fall at every check.
    """
    trained = progress.held_out[1:]
    return len(trained) > spec.patience and best_of(trained) < len(trained) - spec.patience


def _outcome(progress: Progress, measure: str, windows: int, length: int, spec: Training) -> Outcome:
    best = best_of(progress.held_out)
    facts, better = judge(progress.checks[0], crossed(progress.checks), spec.seed, measure)
    better = better and best > 0
    facts["after"] = progress.held_out[best if better else 0]
    passes, steps = progress.seen / windows, steps_of(spec, length)
    facts |= {
        "step_kept": int(progress.curve[best]["step"]) if better else 0,
        "steps": progress.step,
        "steps_planned": steps,
        "tokens": progress.seen * length,
        "passes": passes,
        "curve": progress.curve,
        "notes": _notes(progress, better, passes, steps),
    }
    return Outcome(progress.best if better else {}, facts)


def _notes(progress: Progress, better: bool, passes: float, steps: int) -> list[str]:
    notes = []
    if not better:
        notes.append(KEPT_INPUT)
    if passes > 1:
        notes.append(f"training text was used {passes:.1f} times: give more text, or fewer tokens")
    if progress.step < steps:
        notes.append(f"training stopped after {progress.step} of {steps} steps: the held-out windows got no better")
    return notes


def _finite(value: float, progress: Progress, spec: Training, factor: float) -> float:
    if math.isfinite(value):
        return value
    best = progress.curve[best_of(progress.held_out)]
    rates = ", ".join(f"{n} {r * factor:.3g}" for n, r in spec.rates if isinstance(r, float))
    raise InputError(
        "training diverged",
        where=f"step {progress.step}, learning rates {rates}",
        got=f"loss {value}; the best so far was {best['held_out']:.4g} at step {best['step']}",
        wanted="a finite loss",
        fix="lower `rates` on the node; nothing of the selection it started from is lost",
    )
