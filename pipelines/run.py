"""The one place where I/O meets maths: sources are opened, traces looked up, steps called, outputs stored."""

from __future__ import annotations

import importlib
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.code_id import module_digests
from pipelines.determinism import fix_order_of_sums
from pipelines.graph import Bound, bind
from pipelines.interrupts import check
from pipelines.items import Handle, Item, block_item, independent_items
from pipelines.scratch import room, scratch
from pipelines.sources import open_source_model, open_source_text
from schemas.calibrate import ModelSource, TextSource
from schemas.errors import InputError
from schemas.recipe import Recipe
from steps.device import device_of
from steps.step import Env
from store.artifacts import Artifacts
from store.errors import Unavailable
from store.open import Store

Progress = Callable[[str, int, int], None]
MEMO: dict[str, dict[Any, Any]] = {}
"""What the step that runs remembers in this process (see Env.remember), by its module."""
RESUME = "resume"
"""Folder, beside other local caches, of what killed steps left to go on from; by item key."""


def _silent(node: str, done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class Place:
    """Where a build runs; enters no key."""

    device: str = "cpu"
    cache: Path = Path(".bitsmith/cache")


@dataclass
class NodeState:
    """What is known of a node: its items so far and the outputs they have in the store."""

    items: list[Item] = field(default_factory=list)
    outputs: dict[str, dict[str, str]] = field(default_factory=dict)
    """Item key -> output port -> digest, for every item whose trace is there."""
    total: int = 0
    """Items the node has in all; block-scope items appear one by one."""
    combined: dict[str, str] | None = None
    """Output port -> digest of the whole node, once every item is done."""

    @property
    def pending(self) -> list[str]:
        """Labels of items that have to be computed, the not yet known ones included."""
        absent = [i.place.label for i in self.items if i.key not in self.outputs]
        return absent + [str(k) for k in range(len(self.items), self.total)]


class Runner:
    """One recipe on one store. Whoever computes has one, so the order of sums is fixed here (pipelines/determinism.py).

    `forced` holds keys whose traces are not believed in this run, because what they point to is gone or damaged.
    """

    def __init__(self, recipe: Recipe, store: Store, place: Place) -> None:
        fix_order_of_sums()
        self.recipe, self.store, self.place = recipe, store, place
        self.bound = bind(recipe)
        self.by_id = {b.id: b for b in self.bound}
        self.sources: dict[str, Any] = {}
        self.forced: set[str] = set()

    def source(self, node: str) -> Any:
        """The opened source of a node, opened once."""
        if node not in self.sources:
            self.sources[node] = self._open(self.by_id[node].node.spec)
        return self.sources[node]

    def _open(self, spec: Any) -> Any:
        if isinstance(spec, ModelSource):
            return open_source_model(spec, self.place.cache)
        assert isinstance(spec, TextSource)
        return open_source_text(spec, self.place.cache)

    def handles(self, bound: Bound, outputs: Mapping[str, Mapping[str, str]]) -> dict[str, Handle]:
        """The values on a node's input ports; `outputs` maps nodes to the digests of their output ports."""
        result: dict[str, Handle] = {}
        for port, (node, out) in bound.inputs.items():
            if self.by_id[node].step is None:
                result[port] = self.source(node)
                if result[port].digest != outputs[node][out]:
                    raise InputError(
                        "a source changed while the build ran", where=f"node {node}", fix="run again; nothing is lost"
                    )
            else:
                result[port] = self.store.artifacts.load(outputs[node][out])
        return result

    def state(self, bound: Bound, outputs: Mapping[str, Mapping[str, str]]) -> NodeState:
        """Look a node's traces up; writes nothing but the node's own listing once all items are done."""
        if bound.step is None:
            digest = self.source(bound.id).digest
            return NodeState(combined=dict.fromkeys(_source_ports(bound), digest))
        inputs = self.handles(bound, outputs)
        state = self._blocks(bound, inputs) if bound.step.scope == "block" else self._independent(bound, inputs)
        if not state.pending:
            state.combined = self._combine(bound, state)
        return state

    def _independent(self, bound: Bound, inputs: Mapping[str, Handle]) -> NodeState:
        items = independent_items(bound, inputs)
        return NodeState(items, self._traced(items), len(items))

    def _blocks(self, bound: Bound, inputs: Mapping[str, Handle]) -> NodeState:
        assert bound.step is not None and bound.step.carry is not None
        state = NodeState(total=int(inputs["model"].meta["config"]["num_hidden_layers"]))
        carry = None
        for block in range(state.total):
            item = block_item(bound, inputs, block, carry)
            state.items.append(item)
            found = self._traced([item])
            if not found:
                break
            state.outputs.update(found)
            carry = self.store.artifacts.load(found[item.key][bound.step.carry])
        return state

    def _traced(self, items: Sequence[Item]) -> dict[str, dict[str, str]]:
        asked = [i.key for i in items if i.key not in self.forced]
        return {k: t.outputs for k, t in self.store.traces.get_many(asked).items()}

    def _combine(self, bound: Bound, state: NodeState) -> dict[str, str]:
        assert bound.step is not None
        if bound.step.scope == "model":
            return state.outputs[state.items[0].key]
        combined = {}
        for port in bound.step.outputs:
            children = {i.place.label: state.outputs[i.key][port] for i in state.items}
            combined[port] = self.store.artifacts.save(children=children)
        return combined

    def execute(
        self, node: str, outputs: Mapping[str, Mapping[str, str]], labels: Sequence[str], progress: Progress = _silent
    ) -> int:
        """Compute the named items of a node, in order; returns how many this process computed itself."""
        bound = self.by_id[node]
        assert bound.step is not None
        inputs = self.handles(bound, outputs)
        items = self._block_items if bound.step.scope == "block" else self._chosen_items
        computed = 0
        with self.store.batch():
            for done, item in enumerate(items(bound, inputs, labels)):
                computed += self._compute(item, progress, node)
                progress(node, done + 1, len(labels))
        return computed

    def _chosen_items(self, bound: Bound, inputs: Mapping[str, Handle], labels: Sequence[str]) -> Iterator[Item]:
        wanted = set(labels)
        return (i for i in independent_items(bound, inputs) if i.place.label in wanted)

    def _block_items(self, bound: Bound, inputs: Mapping[str, Handle], labels: Sequence[str]) -> Iterator[Item]:
        """The items of some blocks; what block - 1 left is there whenever an item is handed out."""
        step, carry = bound.step, None
        assert step is not None and step.carry is not None
        wanted, chain = {int(label) for label in labels}, list[Item]()
        for block in range(max(wanted) + 1):
            chain.append(block_item(bound, inputs, block, carry))
            if block in wanted:
                # Traced, another process has been here, and is perhaps blocks ahead.
                if not self._traced(chain[-1:]) and not self._restore_carry(chain, step.carry):
                    yield from self._block_items(bound, inputs, [label for label in labels if int(label) >= block])
                    return
                yield chain[-1]
                self._drop_spill(chain, step.carry)
            found = self._traced(chain[-1:])
            digests = found[chain[-1].key] if found else self._run(chain[-1])
            carry = self.store.artifacts.load(digests[step.carry])

    def _restore_carry(self, chain: Sequence[Item], carry: str) -> bool:
        """Run blocks again whose carried output was cleaned away, from the nearest one that is left.

        False when one comes out otherwise than before, as on another device: its new result is then on record, and the
        blocks behind it are no longer those of the chain.
        """
        first = len(chain) - 1
        while carry in chain[first].inputs and self.store.artifacts.missing(
            chain[first].inputs[carry].digest, deep=True
        ):
            first -= 1
        for number in range(first, len(chain) - 1):
            if self._run(chain[number], anew=True)[carry] != chain[number + 1].inputs[carry].digest:
                return False
            self._drop_spill(chain[: number + 1], carry)
        return True

    def _drop_spill(self, chain: Sequence[Item], carry: str) -> None:
        """Remove what the block before the last one was handed, so that never more than three blocks' are stored."""
        if len(chain) > 2:
            old, last = chain[-2].inputs[carry].digest, chain[-1].inputs[carry].digest
            if old != last:
                self.store.artifacts.discard(old)

    def _compute(self, item: Item, progress: Progress, node: str) -> bool:
        """Run an item unless another process has just done so; True when this one did."""
        check()
        with self.store.leases.turn(item.key, done=lambda: self._traced([item]) or None) as found:
            if found is not None:
                return False
            self._run(item, lambda done, total, what: progress(f"{node}: {what}" if what else node, done, total))
        return True

    def _run(
        self,
        item: Item,
        progress: Callable[[int, int, str], None] = lambda done, total, what: None,
        anew: bool = False,
    ) -> dict[str, str]:
        """The outputs on record from now on; `anew`: this call's, whatever was there."""
        started, notes = time.perf_counter(), list[str]()
        digests = self.call(item, self.store.artifacts, progress, notes.append)
        facts = {
            "seconds": round(time.perf_counter() - started, 6),
            "created": time.time(),
            "process": f"{socket.gethostname()}:{os.getpid()}",
            "modules": module_digests(item.step.module),
            **({"notes": notes} if notes else {}),
        }
        # A step that is not deterministic (timings, a GPU) may have other outputs there already: the first count.
        trace = self.store.traces.put(item.key, item.document, digests, facts, anew)
        shutil.rmtree(self.place.cache / RESUME / item.key, ignore_errors=True)
        self.forced.discard(item.key)
        return trace.outputs

    def call(
        self,
        item: Item,
        artifacts: Artifacts,
        progress: Callable[[int, int, str], None] = lambda done, total, what: None,
        note: Callable[[str], None] = lambda what: None,
    ) -> dict[str, str]:
        """Run an item's step and save what it returns, whether or not that is known; records nothing."""
        with scratch(self.place.cache) as own:
            resume = self.place.cache / RESUME / item.key
            env = Env(device_of(self.place.device), own, progress, _memo(item.step.module), note, resume)
            with room(self.place.cache):
                returned = importlib.import_module(item.step.module).run(item.spec, item.values(), env)
            return {port: artifacts.save_value(out, scratch=own) for port, out in returned.items()}

    def distrust_damaged(self, outputs: Mapping[str, Mapping[str, str]], thorough: bool = False) -> None:
        """Stop believing traces of this recipe whose outputs are not whole in the store.

        `thorough`: read all of them, so that everything that is damaged is found at once.
        """
        found = list(self._recorded(outputs))
        if thorough:
            self.store.artifacts.verify(digest for _, digest in found)
        self.forced |= {key for key, digest in found if self.store.artifacts.missing(digest)}

    def _recorded(self, outputs: Mapping[str, Mapping[str, str]]) -> Iterator[tuple[str, str]]:
        """Keys and output digests of what is traced of this recipe, scratch between blocks aside."""
        for bound in self.bound:
            if bound.step is None or any(n not in outputs for n, _ in bound.inputs.values()):
                continue
            with suppress(Unavailable):  # what it is made from is damaged itself, and has just been named
                for key, ports in self.state(bound, outputs).outputs.items():
                    yield from ((key, digest) for port, digest in ports.items() if port != bound.step.carry)

    def clean(self, node: str, state: NodeState) -> None:
        """Remove the scratch a finished block-scope node leaves: the carried outputs of all its blocks."""
        step = self.by_id[node].step
        if step is not None and step.carry is not None:
            for ports in state.outputs.values():
                self.store.artifacts.discard(ports[step.carry])


def _memo(module: str) -> dict[Any, Any]:
    """Of one step; what others left, whole models among it, is let go, as nobody counts it."""
    for other in MEMO.keys() - {module}:
        del MEMO[other]
    return MEMO.setdefault(module, {})


def _source_ports(bound: Bound) -> list[str]:
    from steps.table import SOURCES

    return [SOURCES[type(bound.node.spec)]]
