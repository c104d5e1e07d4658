"""`python -m pipelines.explore --store URL`: the budget explorer's allocator, a process that answers lines of JSON.

The page may not import the allocator (floors), so it asks this child on stdin and reads one line per request:

    {"id": 1, "op": "open", "build": DIGEST}                                units, formats, costs, the range of sizes
    {"id": 2, "op": "solve", "build": DIGEST, "budget": {...}, "pins": {}}  the plan, its size and KL, what more buys
    {"id": 3, "op": "front", "build": DIGEST, "pins": {}}                   mixed, greedy and uniform over all sizes
    {"id": 4, "op": "recipe", "build": DIGEST, "budget": {...}, "pins": {}} YAML that `bitsmith run` accepts

Answers are {"id": n, "ok": {...}} or {"id": n, "error": {what, where, got, wanted, fix}}. It ends with its stdin.
Without `budget` the build's own counts. Nothing is written, and neither torch nor Prefect is imported.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TextIO, TypeVar

from pydantic import ValidationError

from pipelines.asked import asked_recipe
from pipelines.budgets import Costs, Pinned, answer, budget_from, costs_of, described, front, pinned
from pipelines.recorded import Recorded, reopen
from pipelines.run import Place
from pipelines.settings import Settings, settings
from schemas.budget import Budget
from schemas.errors import InputError
from store.open import Store

OPEN = 4
"""Builds whose tables are kept, and sets of pins per build."""

Request = Mapping[str, Any]
K = TypeVar("K")
V = TypeVar("V")


@dataclass
class Opened:
    """A build, its cost table, and the problems that the pins asked for so far leave."""

    recorded: Recorded
    costs: Costs
    problems: OrderedDict[tuple[tuple[str, str], ...], Pinned] = field(default_factory=OrderedDict)

    def under(self, request: Request) -> Pinned:
        """The problem that the request's pins leave."""
        pins = _pins(request)
        return _remembered(self.problems, tuple(sorted(pins.items())), lambda: pinned(self.costs, pins))

    def budget(self, request: Request) -> Budget:
        """What the request asks for; without a word the build's own."""
        changes = request.get("budget")
        if changes is None:
            return self.costs.spec.budget
        if not isinstance(changes, dict):
            raise InputError("a budget is a mapping", got=changes)
        return budget_from(self.costs.spec.budget, changes)


@dataclass
class Explorer:
    """Builds of one store, opened when they are asked for; the least recently asked are let go."""

    store: Store
    where: Settings
    opened: OrderedDict[str, Opened] = field(default_factory=OrderedDict)

    def answer(self, request: Request) -> dict[str, Any]:
        """What a request is answered with, and how long that took."""
        operation = OPERATIONS.get(str(request.get("op")))
        if operation is None:
            raise InputError("no such operation", got=request.get("op"), wanted=", ".join(OPERATIONS))
        build = str(request.get("build"))
        opened = _remembered(self.opened, build, lambda: self._open(build))
        started = time.perf_counter()
        result = operation(opened, request)
        return {**result, "milliseconds": round(1000 * (time.perf_counter() - started), 1)}

    def _open(self, digest: str) -> Opened:
        try:
            recorded = reopen(self.store.builds.find(digest), self.store, Place("cpu", self.where.cache))
        except ValidationError as error:
            raise InputError(
                "the build's recipe was written by another version of Bitsmith",
                where=f"build {digest[:12]}",
                got=f"{error.error_count()} field(s) that are no longer so",
                fix="run its recipe again, mended",
            ) from error
        return Opened(recorded, costs_of(recorded))


def _open(opened: Opened, request: Request) -> dict[str, Any]:
    return described(opened.costs)


def _solve(opened: Opened, request: Request) -> dict[str, Any]:
    return answer(opened.under(request), opened.budget(request))


def _front(opened: Opened, request: Request) -> dict[str, Any]:
    return front(opened.under(request))


def _recipe(opened: Opened, request: Request) -> dict[str, Any]:
    return {"yaml": asked_recipe(opened.recorded.report, opened.budget(request), _pins(request))}


OPERATIONS: dict[str, Callable[[Opened, Request], dict[str, Any]]] = {
    "open": _open,
    "solve": _solve,
    "front": _front,
    "recipe": _recipe,
}


def _pins(request: Request) -> dict[str, str]:
    pins = request.get("pins", {})
    if not isinstance(pins, dict) or not all(isinstance(name, str) for name in pins.values()):
        raise InputError("pins map units to formats", got=pins)
    return pins


def _remembered(known: OrderedDict[K, V], key: K, make: Callable[[], V]) -> V:
    """The value under a key, made once; the least recently asked beyond OPEN are let go."""
    if key not in known:
        known[key] = make()
    known.move_to_end(key)
    while len(known) > OPEN:
        known.popitem(last=False)
    return known[key]


def serve(explorer: Explorer, requests: TextIO, answers: TextIO) -> None:
    """One line out per line in, in order, until the input ends."""
    for line in requests:
        request: Any = {}
        try:
            request = json.loads(line)
            reply: dict[str, Any] = {"ok": explorer.answer(request)}
        except InputError as error:
            reply = {"error": {k: getattr(error, k) for k in ("what", "where", "got", "wanted", "fix")}}
        except ValueError as error:
            reply = {"error": {"what": "not a request", "where": "", "got": str(error), "wanted": "", "fix": ""}}
        number = request.get("id") if isinstance(request, dict) else None
        answers.write(json.dumps({"id": number, **reply}, allow_nan=False) + "\n")
        answers.flush()


def main() -> None:
    """Answer until stdin ends."""
    parser = argparse.ArgumentParser(description="Answer budget questions about recorded builds, as lines of JSON.")
    parser.add_argument("--store", metavar="URL")
    where = settings(parser.parse_args().store)
    store = Store(where.store)
    store.check_ours()
    serve(Explorer(store, where), sys.stdin, sys.stdout)


if __name__ == "__main__":
    main()
