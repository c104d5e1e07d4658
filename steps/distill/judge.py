"""Whether a result is better than what it came from, on windows that nothing was trained on.

N windows, P predicted positions, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from schemas.calibrate import Reference
from schemas.distill import LEAST_HELD_OUT
from steps.calibrate.reference import run as reference
from steps.distill.resume import Rows
from steps.model.overlay import overlay
from steps.model.positions import predicted_positions
from steps.model.stream import Stream
from steps.step import Env, Output, Value
from steps.verify.bootstrap import difference, draw
from steps.verify.metrics import compare

RESAMPLES = 2000
KEPT_INPUT = "training kept its input: nothing was better on the held-out windows beyond the interval"


def mean(rows: Rows) -> float:
    """Loss per predicted position over held-out windows."""
    return sum(r["loss"] * r["tokens"] for r in rows) / sum(r["tokens"] for r in rows)


def judge(before: Rows, after: Rows, seed: int, measure: str) -> tuple[dict[str, Any], bool]:
    """Facts of a comparison on held-out windows, and whether `after` is better beyond the interval.

    Of fewer windows than LEAST_HELD_OUT none is: all of them can be better by chance in more than 1 of 40 cases.
    """
    gap = difference(after, before, draw(len(before), RESAMPLES, seed), "loss")
    better = gap.high < 0 and len(before) >= LEAST_HELD_OUT
    facts = {
        "measure": measure,
        "before": mean(before),
        "after": mean(after if better else before),
        "difference": gap.model_dump(),
    }
    return facts, better


def best_of(losses: Sequence[float]) -> int:
    """The place of the first of the least losses."""
    return losses.index(min(losses))


def crossed(checks: Sequence[Rows]) -> Rows:
    """Each window's row at the check that the windows of the other half choose: what choosing is worth where it did
    not look. Halves are every other window."""
    halves = (slice(0, None, 2), slice(1, None, 2))
    at = [best_of([mean(rows[half]) for rows in checks]) for half in reversed(halves)]
    return [checks[at[n % 2]][n] for n in range(len(checks[0]))]


def of_blocks(facts: dict[str, Any], better: bool, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Facts of the whole after trainings of blocks, theirs among them."""
    notes = notes_of(found)
    if not better and KEPT_INPUT not in notes:
        notes.append(KEPT_INPUT)
    return {
        **facts,
        "step_kept": sum(int(each["step_kept"]) for each in found) if better else 0,
        **{name: sum(int(each[name]) for each in found) for name in ("steps", "steps_planned", "tokens")},
        "passes": max(float(each["passes"]) for each in found),
        "blocks": list(found),
        "notes": notes,
    }


def notes_of(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """What blocks' trainings have to say, once; that the input stayed only if it did everywhere."""
    notes = list(dict.fromkeys(note for each in found for note in each["notes"] if note != KEPT_INPUT))
    return notes if any(each["step_kept"] for each in found) else [*notes, KEPT_INPUT]


def window_rows(
    model: Value, selections: Sequence[Value], tokens: Value, windows: Sequence[int], batch: int, env: Env
) -> list[Rows]:
    """Of each selection, predicted positions and mean KL(original || selection) of each of these windows.

    One block is resident at a time.
    """
    index_N = torch.tensor(list(windows))
    some = Output(tokens.meta, {name: tensor[index_N] for name, tensor in tokens.tensors.items()})
    positions, vocabulary = predicted_positions(some), int(model.meta["config"]["vocab_size"])
    logits = partial(_logits, tokens=some, asked=Reference(step="reference", batch=batch), env=env)
    original = partial(logits(model), positions.valid_P)
    found = []
    for selection in selections:
        student = partial(logits(overlay(model, selection)), positions.valid_P)
        kl_P = compare(original, student, positions, vocabulary).kl_P
        of = [kl_P[positions.window_P == n].double() for n in range(len(windows))]
        found.append([{"tokens": float(len(kl)), "loss": kl.mean().item()} for kl in of if len(kl)])
    return found


def _logits(model: Value, tokens: Value, asked: Reference, env: Env) -> Callable[[torch.Tensor, slice], torch.Tensor]:
    """logits_PV of some of the valid positions."""
    hidden_TD = reference(asked, {"model": model, "tokens": tokens}, env)["reference"].tensors["hidden_TD"]
    stream = Stream(model, env.device)
    return lambda valid_P, rows: stream.logits(hidden_TD[valid_P[rows]].to(env.device))
