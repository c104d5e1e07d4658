"""Drive a recipe through its nodes: what is cached is taken, what is not is handed out."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pipelines.graph import Bound
from pipelines.run import NodeState, Runner
from schemas.base import digest_of
from schemas.errors import InputError
from schemas.report import NodeRow, NodeStatus
from store.errors import Unavailable

RECOVERIES = 3
"""How often a build may find damage in the store, put it aside and go on."""

Outputs = dict[str, dict[str, str]]
Execute = Callable[[str, Outputs, Sequence[str]], int]
"""(node, outputs so far, labels of all that is pending) -> items computed by this build."""


@dataclass(frozen=True)
class Built:
    """Digests of all outputs, and what each node did."""

    outputs: Outputs
    rows: tuple[NodeRow, ...]


Result = TypeVar("Result")


class NotCached(Exception):
    """Raised by `look_up` at the first node that has work to do."""


def look_up(runner: Runner) -> Built:
    """The build from traces alone; NotCached when anything has to be computed. Imports neither torch nor prefect."""

    def refuse(node: str, outputs: Outputs, labels: Sequence[str]) -> int:
        raise NotCached(node)

    return drive(runner, refuse)


def states(runner: Runner) -> Iterator[tuple[Bound, NodeState | None]]:
    """Every node with what traces say of it; None where an input is not there yet. Computes nothing."""
    outputs: Outputs = {}
    for bound in runner.bound:
        known = all(node in outputs for node, _ in bound.inputs.values())
        state = runner.state(bound, outputs) if known else None
        if state is not None and state.combined is not None:
            outputs[bound.id] = state.combined
        yield bound, state


def drive(runner: Runner, execute: Execute, on_cached: Callable[[NodeRow], None] = lambda row: None) -> Built:
    """Run every node; damaged or missing objects are found, their makers run again, and the build goes on."""
    return drive_and_use(runner, execute, lambda built: built, on_cached)


def drive_and_use(
    runner: Runner,
    execute: Execute,
    use: Callable[[Built], Result],
    on_cached: Callable[[NodeRow], None],
) -> Result:
    """Run every node, then `use` what came out; what `use` finds damaged is made again too, and it is called anew."""
    outputs: Outputs = {}
    computed: Counter[str] = Counter()
    for attempt in range(RECOVERIES + 1):
        try:
            rows = tuple(_node(runner, bound, outputs, execute, on_cached, computed) for bound in runner.bound)
            return use(Built(outputs, rows))
        except Unavailable as damage:
            if attempt == RECOVERIES:
                raise InputError(
                    "the store loses objects faster than they are made again",
                    where=str(damage),
                    fix="check its disk, run `bitsmith fsck`, then run the build again",
                ) from damage
            print(f"note: {damage}; what is damaged is made again", file=sys.stderr)
            runner.distrust_damaged(outputs, thorough=attempt > 0)
    raise AssertionError("unreachable")


def _node(
    runner: Runner,
    bound: Bound,
    outputs: Outputs,
    execute: Execute,
    on_cached: Callable[[NodeRow], None],
    computed: Counter[str],
) -> NodeRow:
    """One node; `computed` counts the items of each node over all attempts."""
    started = time.perf_counter()
    state = runner.state(bound, outputs)
    pending = state.pending
    if pending:
        computed[bound.id] += execute(bound.id, outputs, pending)
        state = runner.state(bound, outputs)
        _check_complete(bound, state)
        runner.clean(bound.id, state)
    assert state.combined is not None, f"node {bound.id} is not complete after its items ran"
    outputs[bound.id] = state.combined
    row = _row(bound, state, outputs, computed[bound.id], time.perf_counter() - started)
    if not computed[bound.id]:
        on_cached(row)
    return row


def _check_complete(bound: Bound, state: NodeState) -> None:
    """Keys hold the code and library versions, so a worker with others answers a question that nobody asked."""
    if state.pending:
        raise InputError(
            "items are not there although they were computed",
            where=f"node {bound.id}",
            got=f"{len(state.pending)} missing, {state.pending[0]} the first",
            fix="give all workers the same version of Bitsmith and of its libraries, and the same sources",
        )


def _row(bound: Bound, state: NodeState, outputs: Outputs, computed: int, seconds: float) -> NodeRow:
    total = len(state.items)
    status: NodeStatus = "cached" if computed == 0 else "computed" if computed >= total else "partial"
    return NodeRow(
        id=bound.id,
        step=bound.node.spec.step,
        status=status,
        seconds=round(seconds, 3),
        key=digest_of([i.key for i in state.items]) if bound.step else digest_of(state.combined),
        units_computed=computed,
        units_cached=max(0, total - computed),
        outputs=outputs[bound.id],
    )
