"""One budget of reallocate.py: its inputs, how tokens are shared out, and steps that run once and are kept."""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from refine_inputs import CANDIDATES, PORTS, load, part, prepare, read, write

from schemas.allocate import Allocate, DynamicProgram
from schemas.base import digest_of
from schemas.budget import Budget
from schemas.calibrate import Reference
from schemas.distill import Distill
from schemas.verify import Evaluate
from steps.allocate import run as allocate
from steps.calibrate import reference
from steps.distill import run as distill
from steps.step import Env, Output, Value
from steps.verify import evaluate

PREPARED = 8_000_000
"""Tokens of text to prepare at most; all of it serves whatever --tokens are asked."""
MEASURED = 64
"""Windows of the training text that nothing is trained on, beside those that each training holds out for itself."""
TELL_SECONDS = 15
Rows = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Share:
    """Some windows of the training text, and how many tokens of them a training may use."""

    tokens: Value
    count: int


@dataclass(frozen=True)
class Bench:
    """One budget: its inputs, how the tokens are shared out, and where what is done is kept."""

    options: argparse.Namespace
    bits: float

    @cached_property
    def given(self) -> dict[str, Value]:
        """What was prepared."""
        o = self.options
        return load(prepare(o.keep, o.formats, self.bits, "gptq", PREPARED, o.text, PORTS | CANDIDATES))

    @cached_property
    def covers(self) -> list[dict[str, str]]:
        """Plans that together hold every unit in several formats."""
        near: dict[str, tuple[str, ...]] = self.plan.meta["neighbours"]
        plan: dict[str, str] = self.plan.meta["plan"]
        if self.options.cover == "uniform":
            return [dict.fromkeys(plan, form) for form in self.options.formats]
        return [
            plan,
            {unit: near[unit][0] for unit in plan},  # the plan's own where there is none below
            {unit: near[unit][-1] for unit in plan},
        ]

    @cached_property
    def shares(self) -> list[Share]:
        """One for each cover, and the last for what comes after; together disjoint."""
        own = Distill(step="distill").held_out
        length, windows = self.given["training"].tensors["ids_NS"].shape[1], self.windows
        first = int(self.options.share * self.options.tokens) // len(self.covers)
        counts = [first] * len(self.covers) + [self.options.tokens - first * len(self.covers)]
        found, at = [], MEASURED
        for count in counts:
            size = -(-count // length) + own
            found.append(Share(part(self.given["training"], range(at, at + size)), count))
            at += size
        if at > windows:
            sys.exit(f"{at} windows of {length} tokens are needed, {windows} are there: give --text, or fewer --tokens")
        return found

    @property
    def windows(self) -> int:
        """Windows of training text."""
        return len(self.given["training"].tensors["lengths_N"])

    @property
    def everything(self) -> Share:
        """All that the shares hold."""
        size = sum(len(share.tokens.tensors["lengths_N"]) for share in self.shares)
        return Share(part(self.given["training"], range(MEASURED, MEASURED + size)), self.options.tokens)

    def env(self, name: str) -> Env:
        """Where a step runs, with progress on the terminal and a folder to go on from."""
        return Env(self.options.device, progress=Told(name), resume=self.options.keep / "resume" / name)

    @cached_property
    def plan(self) -> Value:
        """The first plan."""
        return self.allocated(self.given["scores"], self.given["candidates"])

    def allocated(self, scores: Value, candidates: Value) -> Value:
        """The budget solved with these scores, exactly and without a solver."""
        exact = DynamicProgram(kind="dp")
        spec = Allocate(step="allocate", budget=Budget(bits_per_weight=self.bits), allocator=exact, bootstrap=0)
        inputs = {"model": self.given["model"], "scores": scores, "candidates": candidates}
        return allocate.run(spec, inputs, Env())["plan"]

    def refined(self, selection: Value, share: Share, **fields: Any) -> Output:
        """A training, done once."""
        spec = Distill(step="distill", tokens=share.count, **fields)
        name = digest_of(
            [spec.model_dump(mode="json"), content(selection), content(share.tokens), self.options.device]
        )[:16]
        path = self.options.keep / f"refined-{name}"
        if not path.with_suffix(".json").exists():
            inputs = {"model": self.given["model"], "selection": selection, "tokens": share.tokens}
            write(distill.run(spec, inputs, self.env(name))["selection"], path)
        return read(path)

    def measured(self, selection: Value) -> dict[str, Rows]:
        """Rows per document of the evaluation text, and per window of held-out training text."""
        texts = {
            "evaluation": (self.given["evaluation"], self.given["reference"]),
            "held out": (self._held_out, self._held_out_reference),
        }
        found = {}
        for name, (tokens, original) in texts.items():
            inputs = {"model": self.given["model"], "selection": selection, "tokens": tokens, "reference": original}
            env = Env(self.options.device)
            found[name] = evaluate.run(Evaluate(step="evaluate"), inputs, env)["evaluation"].meta["documents"]
        return found

    @cached_property
    def _held_out(self) -> Value:
        return part(self.given["training"], range(MEASURED))

    @cached_property
    def _held_out_reference(self) -> Value:
        inputs = {"model": self.given["model"], "tokens": self._held_out}
        return reference.run(Reference(step="reference"), inputs, Env(self.options.device))["reference"]


class Told:
    """Progress, now and then, on stderr."""

    def __init__(self, name: str) -> None:
        self._name, self._said = name, time.monotonic()

    def __call__(self, done: int, total: int, what: str) -> None:
        """What a step says."""
        if time.monotonic() - self._said > TELL_SECONDS:
            self._said = time.monotonic()
            print(f"{self._name}: {done}/{total} {what}", file=sys.stderr, flush=True)


def content(value: Value) -> str:
    """Digest of a value's tensors and children."""
    tensors = {name: hashlib.sha256(raw(tensor)).hexdigest() for name, tensor in value.tensors.items()}
    return digest_of([tensors, {name: content(child) for name, child in value.children.items()}])


def raw(tensor: torch.Tensor) -> bytes:
    """A tensor's bytes; numpy knows no bf16."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
