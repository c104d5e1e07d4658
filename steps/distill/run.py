"""Refine a selection against the original with the whole model in memory.

N windows, S positions, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from schemas.distill import Blocks, Distill, Logits, Outputs, Whole
from schemas.errors import InputError
from steps.distill.blocks import Around, BlocksTask
from steps.distill.fisher import output_fisher
from steps.distill.judge import judge, of_blocks
from steps.distill.memory import available_bytes, batch_tokens, check_fits, training_bytes
from steps.distill.schedule import LEAST_WINDOWS, split
from steps.distill.student import Student, selection_of, student, untrained
from steps.distill.train import Outcome, train
from steps.distill.whole import Pair, WholeTask
from steps.model.overlay import overlay
from steps.model.positions import predicted_positions, take
from steps.model.stream import Stream
from steps.model.whole import all_blocks
from steps.model.windows import advance
from steps.step import Env, Output, Value

FISHER_WINDOWS = 16
NAMED = 6
"""Units that a note names before it counts them."""


@dataclass(frozen=True)
class Setting:
    """One training's surroundings: the pair of models, the text, which windows train and which judge."""

    spec: Distill
    model: Value
    tokens: Value
    pair: Pair
    train: list[int]
    kept_out: list[int]
    length: int
    env: Env


def run(spec: Distill, inputs: Mapping[str, Value], env: Env) -> dict[str, Output]:
    """`selection`: the same formats and bytes, with codes, scales, norms and biases as trained.

    Everything trained is rounded to what will be stored in every forward pass or, for soft codes, in every check, so
    what the held-out windows judge is what will be packed. Blocks as `precision` says, all else fp32; sums of
    checks in fp64.
    """
    model, selection, tokens = inputs["model"], inputs["selection"], inputs["tokens"]
    check_text(tokens)
    _check_memory(spec, model, tokens, env)
    original = Stream(model, env.device).hold_table()
    pair = Pair(original, Stream(overlay(model, selection), env.device).hold_table(), all_blocks(original))
    kept = split(len(tokens.tensors["lengths_N"]), spec.held_out, spec.seed)
    setting = Setting(spec, model, tokens, pair, *kept, tokens.tensors["ids_NS"].shape[1], env)
    outcome = _whole(setting, selection) if isinstance(spec.scope, Whole) else _blocks(setting, spec.scope, selection)
    return {"selection": output(selection, Outcome(outcome.tensors, told(selection, outcome.facts)))}


def output(selection: Value, outcome: Outcome) -> Output:
    """The selection with what a training gave; meta `distilled` holds its facts."""
    children = selection_of(selection, outcome.tensors) if outcome.tensors else dict(selection.children)
    return Output({**selection.meta, "distilled": outcome.facts}, selection.tensors, children, selection.files)


def told(selection: Value, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a training, and which units it left as they were by design."""
    if not (names := untrained(selection)):
        return dict(facts)
    rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    note = f"not trained: {', '.join(names[:NAMED])}{rest} (embedding and head stay, and so does f16)"
    return {**facts, "untrained": names, "notes": [*facts["notes"], note]}


def _whole(setting: Setting, selection: Value) -> Outcome:
    given, trained = _students(setting, selection, range(len(setting.pair.blocks)), final=True)
    terms = [term for term in setting.spec.objective if isinstance(term, Logits)]
    task = WholeTask(terms, setting.pair, given, trained, setting.tokens, setting.kept_out)
    return train(setting.spec, task, setting.train, setting.length, setting.env)


def _blocks(setting: Setting, scope: Blocks, selection: Value) -> Outcome:
    """Train each window of blocks in turn; judge the whole by forward KL, as for the whole model."""
    pair, env = setting.pair, setting.env
    ids_NS, fisher = setting.tokens.tensors["ids_NS"], _fisher(setting)
    entering_NSD, original_NSD = pair.quantized.embed(ids_NS).cpu(), pair.original.embed(ids_NS).cpu()
    now, kept, found = selection, dict[str, torch.Tensor](), list[dict[str, Any]]()
    for first in range(0, len(pair.blocks), scope.stride):
        window = range(first, min(first + scope.width, len(pair.blocks)))
        target_NSD = _through(setting, [pair.blocks[k] for k in window], original_NSD.clone())
        around = Around(
            pair.original,
            dict(enumerate(pair.blocks)),
            first,
            len(window),
            entering_NSD,
            target_NSD,
            fisher[window[-1]] if fisher else None,
        )
        outcome = _window(setting, around, now, window)
        found.append({"first_block": first, **outcome.facts})
        if outcome.tensors:
            kept |= outcome.tensors
            now = Output(children=selection_of(now, outcome.tensors))
        done = window[: scope.stride]
        refined = Stream(overlay(setting.model, now), env.device)
        entering_NSD = _through(setting, (refined.block(k) for k in done), entering_NSD)
        original_NSD = _through(setting, (pair.blocks[k] for k in done), original_NSD)
    return _judged(setting, selection, now, kept, found)


def _window(setting: Setting, around: Around, now: Value, window: Sequence[int]) -> Outcome:
    given, trained = _students(setting, now, window, final=False)
    task = BlocksTask(setting.spec.objective, around, given, trained, setting.tokens, setting.kept_out)
    return train(setting.spec, task, setting.train, setting.length, setting.env, f"blocks-{window[0]}")


def _students(setting: Setting, selection: Value, blocks: Sequence[int], final: bool) -> tuple[Student, Student]:
    """The selection's part as it is, and as it is trained."""
    fixed = student(None, setting.model, selection, blocks, final, setting.env.device)
    return fixed, student(setting.spec, setting.model, selection, blocks, final, setting.env.device)


def _through(setting: Setting, blocks: Iterable[nn.Module], hidden_NSD: torch.Tensor) -> torch.Tensor:
    """All windows through some blocks, in place."""
    for block in blocks:
        advance(setting.pair.original, block, hidden_NSD, hidden_NSD, setting.spec.batch)
    return hidden_NSD


def _fisher(setting: Setting) -> list[torch.Tensor]:
    """Of every block's output, if a term asks for it; from the first training windows."""
    if not any(isinstance(term, Outputs) and term.fisher for term in setting.spec.objective):
        return []
    parts = [take(setting.tokens, [window]) for window in setting.train[:FISHER_WINDOWS]]
    return output_fisher(setting.pair.original, setting.pair.blocks, parts, setting.spec.seed)


def _judged(
    setting: Setting, selection: Value, now: Value, kept: dict[str, torch.Tensor], found: list[dict[str, Any]]
) -> Outcome:
    """Whether the blocks together made the model better, by forward KL on the held-out windows."""
    every = range(len(setting.pair.blocks))
    before, after = (student(None, setting.model, s, every, True, setting.env.device) for s in (selection, now))
    task = WholeTask((), setting.pair, before, before, setting.tokens, setting.kept_out)
    facts, better = judge(task.measure(before), task.measure(after), setting.spec.seed, task.measured)
    return Outcome(kept if better else {}, of_blocks(facts, better, found))


def check_text(tokens: Value) -> None:
    """InputError for text that has nothing to predict, or too few windows to train on some and hold out others."""
    predicted_positions(tokens)
    windows = len(tokens.tensors["lengths_N"])
    if windows < LEAST_WINDOWS:
        raise InputError(
            "too few windows to train on some and hold out others",
            where="tokens of the distill node",
            got=windows,
            wanted=f"at least {LEAST_WINDOWS}",
            fix="give more training text",
        )


def _check_memory(spec: Distill, model: Value, tokens: Value, env: Env) -> None:
    """Refuse a model that does not fit before anything is loaded."""
    windows, length = tokens.tensors["ids_NS"].shape
    waiting = 0 if env.device.startswith("cuda") else windows * length
    needed = training_bytes(spec, model.meta, batch_tokens(spec, windows, length), waiting)
    check_fits(needed, available_bytes(env.device), str(model.meta.get("name", "model")))
