"""Train scales and norms of a selection against the original, codes fixed; keep what a held-out slice likes best.

N windows, D hidden size, P predicted positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from schemas.distill import Distill
from schemas.errors import InputError
from steps.distill.memory import available_bytes, check_fits, training_bytes
from steps.distill.objective import Teacher, held_out_kl, training_loss
from steps.distill.parameters import Student, selection_of, student, tensors_of
from steps.distill.schedule import learning_rate, split, training_batches
from steps.model.positions import Batch, predicted_positions, take
from steps.model.stream import Stream
from steps.model.whole import all_blocks
from steps.step import Env, Output, Value


@dataclass(frozen=True)
class Checked:
    """The student at one step: its KL on the held-out windows and what would be stored."""

    step: int
    kl: float
    tensors: Mapping[str, torch.Tensor]


def run(spec: Distill, inputs: Mapping[str, Value], env: Env) -> dict[str, Output]:
    """`selection`: the same codes and formats with trained scales, and norms in the child `norms`.

    Scales and norms are trained as start * (1 + delta) with Adam, and are rounded to the dtype of the file in every
    forward pass (straight-through), so what is checked on the held-out windows is what will be stored. A result no
    better than the input there is the input. Forward KL per predicted position, fp32; held-out sums in fp64.
    """
    model, selection, tokens = inputs["model"], inputs["selection"], inputs["tokens"]
    windows = len(tokens.tensors["lengths_N"])
    _check(spec, model, tokens, windows, env)
    stream = Stream(model, env.device)
    teacher, trained = Teacher(stream, all_blocks(stream)), student(model, selection, env.device)
    train, kept_out = split(windows, spec.held_out, spec.seed)
    checks = [take(tokens, kept_out[i : i + spec.batch]) for i in range(0, len(kept_out), spec.batch)]
    best, distilled = optimise(spec, teacher, trained, tokens, train, checks, env)
    children = selection_of(selection, best.tensors) if best.step else dict(selection.children)
    meta = {**selection.meta, "distilled": distilled}
    return {"selection": Output(meta, selection.tensors, children, selection.files)}


def optimise(
    spec: Distill, teacher: Teacher, trained: Student, tokens: Value, train: list[int], checks: list[Batch], env: Env
) -> tuple[Checked, dict[str, Any]]:
    """The best check (step 0 is the input itself) and the `distilled` facts. InputError when a KL is not finite."""
    original = [teacher.hidden(part) for part in checks]
    best = Checked(0, held_out_kl(teacher, trained, checks, original), {})
    curve, losses, seen = [{"step": 0, "kl": best.kl}], list[float](), 0
    adam = torch.optim.Adam(trained.trained(), lr=0.0)
    for step, windows in enumerate(training_batches(train, spec.batch, spec.steps), start=1):
        part, rate = take(tokens, windows), learning_rate(step, spec.steps, spec.warmup, spec.learning_rate)
        adam.param_groups[0]["lr"] = rate
        losses.append(_finite(_step(adam, teacher, trained, part), step, rate, best))
        seen += len(part.rows_P)
        if step % spec.check_every == 0 or step == spec.steps:
            kl = _finite(held_out_kl(teacher, trained, checks, original), step, rate, best)
            curve.append({"step": step, "kl": kl, "train": sum(losses) / len(losses)})
            best, losses = Checked(step, kl, tensors_of(trained)) if kl < best.kl else best, []
        env.progress(step, spec.steps, "steps")
    facts = {"kl_before": curve[0]["kl"], "kl_after": best.kl, "step_kept": best.step, "tokens": seen}
    return best, {**facts, "curve": curve}


def _step(adam: torch.optim.Adam, teacher: Teacher, trained: Student, part: Batch) -> float:
    """One update; the loss before it."""
    adam.zero_grad()
    loss = training_loss(teacher, trained, part)
    loss.backward()  # type: ignore[no-untyped-call]
    adam.step()
    return loss.item()


def _finite(value: float, step: int, rate: float, best: Checked) -> float:
    if math.isfinite(value):
        return value
    raise InputError(
        "training diverged",
        where=f"step {step}, learning rate {rate:.3g}",
        got=f"KL {value}; the best so far was {best.kl:.4g} at step {best.step}",
        wanted="a finite KL",
        fix="lower `learning_rate` on the distill node",
    )


def _check(spec: Distill, model: Value, tokens: Value, windows: int, env: Env) -> None:
    """Refuse too little text and too large a model before anything is loaded."""
    predicted_positions(tokens)
    if windows < 2:
        raise InputError(
            "too few windows to train on some and hold out others",
            where="tokens of the distill node",
            got=windows,
            wanted="at least 2",
            fix="raise `windows` on its tokenize node",
        )
    length = tokens.tensors["ids_NS"].shape[1]
    needed = training_bytes(model.meta["config"], model.meta["shapes"], spec.batch * length)
    check_fits(needed, available_bytes(env.device), str(model.meta.get("name", "model")))
