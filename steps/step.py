"""What a step is: a pure function from a spec and input values to output values, and the row that declares it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from schemas.artifact import PortType
from schemas.base import Spec

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
Scope = Literal["model", "block", "unit"]


class Value(Protocol):
    """What a step is handed on a port: JSON facts, tensors, named parts, files. All lazy, all read-only."""

    @property
    def meta(self) -> Mapping[str, Any]:
        """JSON facts."""

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """Tensors by name, each read (and verified) when asked for, on the CPU."""

    @property
    def children(self) -> Mapping[str, Value]:
        """Parts by name: blocks, units, (unit, format) items."""

    @property
    def files(self) -> Mapping[str, Path]:
        """Local paths of whole files, by relative name."""


@dataclass(frozen=True)
class Output:
    """What a step returns on a port. A Value itself, so outputs feed steps directly in tests."""

    meta: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    children: Mapping[str, Value] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)


def _silent(done: int, total: int, what: str) -> None:
    pass


def _unsaid(what: str) -> None:
    pass


@dataclass(frozen=True)
class Env:
    """Where a step runs. Nothing in here may change a result, so nothing in here enters a key."""

    device: str = "cpu"
    scratch: Path = Path(".")
    """An empty folder of this call's own; files returned in an Output may live here."""
    progress: Callable[[int, int, str], None] = _silent
    memo: dict[Any, Any] = field(default_factory=dict)
    """Process-wide memory for things that are slow to rebuild, keyed by content (`remember`)."""
    note: Callable[[str], None] = _unsaid
    """What a user should know of this call; what they should know of its result stands in the result."""
    resume: Path | None = None
    """A folder that outlives a killed call of the same item, for what a step needs to go on; None if there is none."""

    def remember(self, key: tuple[Any, ...], make: Callable[[], T]) -> T:
        """The value under `key`, made once. Keeps one value per first element of the key."""
        name, rest = key[0], key[1:]
        held = self.memo.get(name)
        if held is None or held[0] != rest:
            held = (rest, make())
            self.memo[name] = held
        value: T = held[1]
        return value


View = Literal["whole", "tokenizer", "structure", "block", "unit", "child", "units"]


@dataclass(frozen=True)
class Step:
    """One row of the table of steps.

    `module` is imported when the step runs (so that asking what is cached imports no torch) and has
    `run(spec, inputs, env) -> dict[port, Output]`.

    scope model: called once.
    scope block: called per block, in order; `carry` names an output of block k-1 that is an input of block k (absent
    at block 0) and scratch once block k is done.
    scope unit: called per (unit, format); of a Quantize spec the item's own QuantizeUnit.

    `views` says how much of a port an item is handed, and so how much of it enters the item's key: a model's
    `tokenizer` files, its `structure` (config and shapes), the weights of the item's `block` or `unit`, the `child` of
    a composite value that belongs to the item, or the `units` of a selection that lie in the item's block (what lies
    outside all blocks goes with the first). Ports not named are handed whole.
    """

    spec: type[Spec]
    module: str
    inputs: Mapping[str, PortType]
    outputs: Mapping[str, PortType]
    scope: Scope
    libraries: tuple[str, ...] = ("torch",)
    optional: frozenset[str] = frozenset()
    views: Mapping[str, View] = field(default_factory=dict)
    carry: str | None = None
