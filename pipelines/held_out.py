"""Whether texts are kept apart: what is judged on must not have been learned from, nor chosen on."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.graph import Bound
from pipelines.run import Runner
from schemas.calibrate import Tokenize
from schemas.errors import InputError

LEARNED, CHOSEN, JUDGED = range(3)
NAMES = {CHOSEN: "text to choose on", JUDGED: "evaluation text"}
NEUTRAL = {"reference", "generate"}
"""Reading tokens to know what a finished model says about them teaches nobody anything."""


def check_held_out(runner: Runner) -> None:
    """InputError when a document, by its digest, is in two texts of different use."""
    uses = {b.id: set[int]() for b in runner.bound if b.node.spec.step == "text"}
    for bound in runner.bound:
        if isinstance(bound.node.spec, Tokenize):
            uses[bound.inputs["text"][0]] |= set(_uses(runner, bound))
    seen = {text: set(runner.source(text).meta["digests"]) for text in uses}
    for first, roles in uses.items():
        for second, others in uses.items():
            clash = max((role for role in roles if role > min(others, default=JUDGED)), default=LEARNED)
            if clash != LEARNED and (shared := seen[first] & seen[second]):
                raise InputError(
                    f"{NAMES[clash]} must be held out",
                    where=f"nodes {first} and {second}",
                    got=f"{len(shared)} document(s) in both",
                    wanted="disjoint documents",
                    fix="choose another text for one of them",
                )


def _uses(runner: Runner, tokens: Bound) -> Iterator[int]:
    """What the readers of some tokens do with them."""
    for reader in runner.bound:
        if (tokens.id, "tokens") in reader.inputs.values():
            step = reader.node.spec.step
            if step in ("verify", "measure"):
                yield JUDGED
            elif step == "evaluate":
                yield from _uses_of_evaluation(runner, reader)
            elif step not in NEUTRAL:
                yield LEARNED


def _uses_of_evaluation(runner: Runner, evaluation: Bound) -> Iterator[int]:
    """An evaluation is judged by, unless it serves a choice, or only says how well scores add up."""
    readers = {b.node.spec.step for b in runner.bound if (evaluation.id, "evaluation") in b.inputs.values()}
    if "choose" in readers:
        yield CHOSEN
    if readers - {"choose", "additivity"} or not readers:
        yield JUDGED
