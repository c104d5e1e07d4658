"""What a refinement will find and take, before anything runs: text enough, memory enough."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.drive import states
from pipelines.graph import Bound
from pipelines.run import Runner
from pipelines.supply import Supply, as_found, supply_of
from schemas.calibrate import Tokenize
from schemas.distill import Distill, Recode, Reconstruct, Training
from schemas.errors import InputError
from steps.device import device_of
from steps.distill.memory import available_bytes, batch_tokens, block_bytes, check_fits, training_bytes
from steps.distill.schedule import LEAST_WINDOWS, held_out_of, steps_of
from steps.model.structure import last_block, max_length

GPU = Path("/dev/nvidiactl")
"""Where there is none, no GPU has to be asked, which would import torch."""


def trainings(runner: Runner) -> list[tuple[Bound, Training]]:
    """The nodes that train."""
    return [(b, b.node.spec) for b in runner.bound if isinstance(b.node.spec, Distill | Reconstruct)]


def text_notes(runner: Runner) -> Iterator[str]:
    """Per refinement, the text that is there and how often it will be used. InputError where there is next to none."""
    for bound in runner.bound:
        spec = bound.node.spec
        if not isinstance(spec, Distill | Reconstruct | Recode):
            continue
        text = bound.inputs["tokens"][0]
        if (supply := supply_of(runner, text)) is None:
            continue
        if supply.windows < LEAST_WINDOWS:
            asked = spec.windows if isinstance(spec, Recode) else -(-spec.tokens // supply.length)
            raise InputError(
                "too little text to refine by some windows and hold out others",
                where=f"node {bound.id}, text of node {text}",
                got=f"{max(supply.windows, 0)} windows of {supply.length} tokens that nothing else reads",
                wanted=f"at least {LEAST_WINDOWS}; for all that is asked {asked + spec.held_out}",
                fix="give more text (`distill.text`), fewer calibration windows, or a smaller `length`",
            )
        yield f"{bound.id}: {_sentence(spec, supply)}"


def _sentence(spec: Training | Recode, supply: Supply) -> str:
    kept, about = held_out_of(supply.windows, spec.held_out), "about " if supply.about else ""
    windows = supply.windows - kept
    limit = f" ({spec.held_out:,} were asked for, which takes more text)" if kept < spec.held_out else ""
    if isinstance(spec, Recode):
        used = f"chooses codes by {min(spec.windows, windows)} of {about}{windows:,} windows of text"
        used += f" beside {kept} held-out ones{limit}"
        return used if spec.windows <= windows else f"{used}; {spec.windows} were asked for: give more text"
    fresh = windows * supply.length
    seen = steps_of(spec, supply.length) * min(spec.batch, windows) * supply.length
    there = f"{about}{fresh:,} tokens of text beside {kept} held-out windows{limit}"
    if seen <= fresh:
        return f"trains on {seen:,} of {there}, each once"
    return f"trains on {seen:,} tokens, but there are {there}: each is used {seen / fresh:.1f} times; give more text"


def memory_needed(runner: Runner) -> dict[str, int]:
    """Node that trains -> bytes that it takes at least, with the text that is there."""
    found, nodes = {}, as_found(runner).nodes
    for bound, spec in trainings(runner):
        meta = runner.source(bound.inputs["model"][0]).meta
        tokens = nodes[bound.inputs["tokens"][0]].spec
        if isinstance(tokens, Tokenize):
            length = min(tokens.length, max_length(meta["config"]))
            waiting = tokens.windows * length if _device(runner.place.device) == "cpu" else 0
            found[bound.id] = _bytes(spec, meta, batch_tokens(spec, tokens.windows, length), waiting)
    return found


def _bytes(spec: Training, meta: Mapping[str, Any], tokens: int, all_tokens: int) -> int:
    """`all_tokens` wait outside a GPU."""
    if isinstance(spec, Distill):
        return training_bytes(spec, meta, tokens, all_tokens)
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
