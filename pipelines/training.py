"""What a refinement will find and take, before anything runs: text enough, memory enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.drive import states
from pipelines.graph import Bound
from pipelines.run import Runner
from pipelines.scratch import scratch
from schemas.calibrate import Tokenize
from schemas.distill import Distill, Recode, Reconstruct, Training
from schemas.errors import InputError
from steps.calibrate.encode import open_tokenizer
from steps.device import device_of
from steps.distill.memory import available_bytes, block_bytes, check_fits, training_bytes
from steps.distill.schedule import LEAST_WINDOWS, held_out_of, steps_of
from steps.model.structure import last_block, max_length

SAMPLE = 4_000_000
"""Characters that are tokenized to know how much text there is; what a second or so reads."""
GPU = Path("/dev/nvidiactl")
"""Where there is none, no GPU has to be asked, which would import torch."""
_COUNTED: dict[tuple[str, str, str], int] = {}
"""Windows by model, text and layout: a sweep asks for each budget."""


@dataclass(frozen=True)
class Supply:
    """Windows that a training finds in its text, of how many tokens; `about` where only a sample was counted."""

    windows: int
    length: int
    about: bool


def trainings(runner: Runner) -> list[tuple[Bound, Training]]:
    """The nodes that train."""
    return [(b, b.node.spec) for b in runner.bound if isinstance(b.node.spec, Distill | Reconstruct)]


def text_notes(runner: Runner) -> Iterator[str]:
    """Per refinement, the text that is there and how often it will be used. InputError where there is next to none."""
    for bound in runner.bound:
        spec = bound.node.spec
        if not isinstance(spec, Distill | Reconstruct | Recode) or (supply := _supply(runner, bound)) is None:
            continue
        if supply.windows < LEAST_WINDOWS:
            asked = spec.windows if isinstance(spec, Recode) else -(-spec.tokens // supply.length)
            raise InputError(
                "too little text to refine by some windows and hold out others",
                where=f"node {bound.id}, text of node {bound.inputs['tokens'][0]}",
                got=f"{max(supply.windows, 0)} windows of {supply.length} tokens that nothing else reads",
                wanted=f"at least {LEAST_WINDOWS}; for all that is asked {asked + spec.held_out}",
                fix="give more text (`distill.text`), fewer calibration windows, or a smaller `length`",
            )
        yield f"{bound.id}: {_sentence(spec, supply)}"


def _sentence(spec: Training | Recode, supply: Supply) -> str:
    kept = held_out_of(supply.windows, spec.held_out)
    if isinstance(spec, Recode):
        windows, about = supply.windows - kept, "about " if supply.about else ""
        used = f"chooses codes by {min(spec.windows, windows)} of {about}{windows:,} windows of text"
        used += f" beside {kept} held-out ones"
        return used if spec.windows <= windows else f"{used}; {spec.windows} were asked for: give more text"
    fresh = (supply.windows - kept) * supply.length
    seen = steps_of(spec, supply.length) * min(spec.batch, supply.windows - kept) * supply.length
    there = f"{'about ' if supply.about else ''}{fresh:,} tokens of text beside {kept} held-out windows"
    if seen <= fresh:
        return f"trains on {seen:,} of {there}, each once"
    return f"trains on {seen:,} tokens, but there are {there}: each is used {seen / fresh:.1f} times; give more text"


def memory_needed(runner: Runner) -> dict[str, int]:
    """Node that trains -> bytes that it takes at least."""
    found = {}
    for bound, spec in trainings(runner):
        meta = runner.source(bound.inputs["model"][0]).meta
        tokens = runner.by_id[bound.inputs["tokens"][0]].node.spec
        if isinstance(tokens, Tokenize):
            length = min(tokens.length, max_length(meta["config"]))
            waiting = tokens.windows if _device(runner.place.device) == "cpu" else 0
            found[bound.id] = _bytes(spec, meta, spec.batch * length, waiting * length)
    return found


def _bytes(spec: Training, meta: Mapping[str, Any], tokens: int, all_tokens: int) -> int:
    """`all_tokens` wait outside a GPU."""
    if isinstance(spec, Distill):
        return training_bytes(spec, meta, tokens)
    return max(block_bytes(spec, meta, k, tokens, all_tokens) for k in range(last_block(meta["config"]) + 1))


def check_memory(runner: Runner) -> None:
    """InputError for a training that does not fit on the device it will run on, unless its result is there already."""
    available = available_bytes(_device(runner.place.device))
    short = {node: needed for node, needed in memory_needed(runner).items() if available and needed > available}
    cached = {b.id for b, state in states(runner) if state is not None and state.combined is not None} if short else ()
    for node, needed in short.items():
        if node not in cached:
            check_fits(needed, available, f"node {node}")


def _device(asked: str) -> str:
    return "cpu" if asked == "auto" and not GPU.exists() else device_of(asked)


def _supply(runner: Runner, bound: Bound) -> Supply | None:
    """None where it cannot be known in seconds: tokens from elsewhere, a tokenizer that transformers has to load."""
    tokens = runner.by_id[bound.inputs["tokens"][0]]
    spec = tokens.node.spec
    if not isinstance(spec, Tokenize):
        return None
    model, text = (runner.source(tokens.inputs[port][0]) for port in ("model", "text"))
    if "tokenizer.json" not in model.files:
        return None
    length = min(spec.length, max_length(model.meta["config"]))
    texts, key = text.texts, (model.digest, text.digest, f"{spec.layout} {length}")
    every = -(-sum(map(len, texts)) // SAMPLE) or 1
    if key not in _COUNTED:
        with scratch(runner.place.cache) as own:
            encode = open_tokenizer(model.files, own)
            _COUNTED[key] = _count(encode, texts, every, spec, length)
    return Supply(min(_COUNTED[key] - spec.skip, spec.windows), length, every > 1)


def _count(
    encode: Callable[[Sequence[str], bool], list[list[int]]],
    texts: Sequence[str],
    every: int,
    spec: Tokenize,
    length: int,
) -> int:
    """Windows of a text, from every so manieth of its documents."""
    sample = texts[::every]
    counts = [len(ids) for ids in encode(sample, spec.layout == "document")]
    share = sum(map(len, sample)) / max(sum(map(len, texts)), 1) or 1
    if spec.layout == "document":
        return math.floor(sum(-(-max(n - 1, 0) // length) for n in counts) / share)
    return math.floor((sum(counts) + len(counts) - 1) / share) // length
