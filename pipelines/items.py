"""What a node's work consists of: items, each with the parts of its inputs that it needs and the key these make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipelines.code_id import code_of
from pipelines.graph import Bound
from schemas.artifact import Unit, item_name, unit_name
from schemas.base import Spec, digest_of
from schemas.quantize import Quantize
from schemas.structure import EMBEDDING, FINAL_NORM
from steps.model.offers import offers
from steps.model.structure import block_prefix, find_units, last_block
from steps.step import Step, Value, View

if TYPE_CHECKING:
    from store.models import SourceModel

MODEL_LABEL = "all"
"""Label of the only item of a model-scope node."""


class Handle(Value, Protocol):
    """A value that knows its digest: a source model, documents, or an artifact of the store."""

    @property
    def digest(self) -> str:
        """sha256 of the content."""


@dataclass(frozen=True)
class Place:
    """Which part of the model an item is about."""

    label: str
    block: int | None = None
    unit: Unit | None = None


@dataclass(frozen=True)
class Item:
    """One call of a step: `document` is what its key is the digest of."""

    place: Place
    spec: Spec
    document: dict[str, Any]
    key: str
    inputs: Mapping[str, Handle]
    step: Step

    def values(self) -> dict[str, Value]:
        """The parts of the inputs that `run` is handed."""
        return {port: part(h, self.step.views.get(port, "whole"), self.place) for port, h in self.inputs.items()}


@dataclass(frozen=True)
class PartView:
    """Some weights of a model, and in `meta` what part of it they are: a `block` or a `unit`."""

    weights: Handle
    about: Mapping[str, Any]

    @property
    def meta(self) -> Mapping[str, Any]:
        """The model's meta and what the part is."""
        return {**self.weights.meta, **self.about}

    @property
    def tensors(self) -> Mapping[str, Any]:
        """The part's weights by full name."""
        return self.weights.tensors

    @property
    def children(self) -> Mapping[str, Value]:
        """None."""
        return {}

    @property
    def files(self) -> Mapping[str, Path]:
        """None."""
        return {}

    @property
    def digest(self) -> str:
        """Of the weights and of the part's description: its names enter what is stored."""
        return digest_of({"weights": self.weights.digest, **self.about})


@dataclass(frozen=True)
class UnitsView:
    """The children of a selection that lie in a decoder block; its meta, which is about the whole, is left out."""

    selection: Any
    names: tuple[str, ...]

    @property
    def meta(self) -> Mapping[str, Any]:
        """None."""
        return {}

    @property
    def tensors(self) -> Mapping[str, Any]:
        """None."""
        return {}

    @property
    def children(self) -> Mapping[str, Value]:
        """Units, and what the selection holds beside units."""
        return {name: self.selection.children[name] for name in self.names}

    @property
    def files(self) -> Mapping[str, Path]:
        """None."""
        return {}

    @property
    def digest(self) -> str:
        """Of the children's digests by name."""
        return digest_of({name: str(self.selection.children.digests[name]) for name in self.names})


def units_view(selection: Any, block: int) -> UnitsView:
    """A block's units by the beginning of their names; norms go with every block, the rest with the first one."""
    own = f"layers.{block}"
    names = [n for n in sorted(selection.children.digests) if n == own or n.startswith(f"{own}.") or n == "norms"]
    rest = [n for n in sorted(selection.children.digests) if not n.startswith("layers.") and n != "norms"]
    return UnitsView(selection, tuple(names + (rest if block == 0 else [])))


def part(handle: Any, view: View, place: Place) -> Handle:
    """The part of an input that an item is handed."""
    match view:
        case "tokenizer":
            return handle.view([], files=True)  # type: ignore[no-any-return]
        case "structure":
            return handle.view([])  # type: ignore[no-any-return]
        case "block":
            block = place.block or 0
            return PartView(handle.view(_block_names(handle, block)), {"block": block})
        case "unit":
            assert place.unit is not None
            names = [f"{m}.weight" for m in place.unit.members]
            return PartView(handle.view(names), {"unit": place.unit.model_dump(mode="json")})
        case "child":
            return handle.children[_child(handle, place)]  # type: ignore[no-any-return]
        case "units":
            return units_view(handle, place.block or 0)
        case "whole":
            return handle  # type: ignore[no-any-return]


def part_digest(handle: Any, view: View, place: Place) -> str:
    """Digest of `part`, without loading anything."""
    if view == "child":
        return str(handle.children.digests[_child(handle, place)])
    return part(handle, view, place).digest


def _child(handle: Any, place: Place) -> str:
    return place.label if place.label in handle.children.digests else str(place.block)


def _block_names(model: SourceModel, block: int) -> list[str]:
    """The block's weights; with the first what makes its input, with the last the norm behind it."""
    names = [n for n in model.meta["shapes"] if n.startswith(block_prefix(block))]
    before = [EMBEDDING] if block == 0 else []
    behind = [FINAL_NORM] if block == last_block(model.meta["config"]) else []
    return [*before, *names, *behind]


@lru_cache(maxsize=64)
def library_version(name: str) -> str:
    """Version of an installed distribution, or `absent`."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def make_item(step: Step, spec: Spec, place: Place, inputs: Mapping[str, Handle], digests: Mapping[str, str]) -> Item:
    """An item and its key. `digests` are those of the parts of its inputs."""
    document = {
        "step": step.module,
        "spec": spec.model_dump(mode="json"),
        "code": code_of(step.module),
        "libraries": {name: library_version(name) for name in step.libraries},
        "inputs": dict(digests),
    }
    return Item(place, spec, document, digest_of(document), inputs, step)


def places(bound: Bound, inputs: Mapping[str, Handle]) -> list[tuple[Place, Spec]]:
    """All items of a node, by place and spec, in running order."""
    assert bound.step is not None
    spec = bound.node.spec
    if bound.step.scope == "model":
        return [(Place(MODEL_LABEL), spec)]
    meta = inputs["model"].meta
    if bound.step.scope == "block":
        return [(Place(str(k), block=k), spec) for k in range(int(meta["config"]["num_hidden_layers"]))]
    if isinstance(spec, Quantize):
        offered = offers(meta["config"], meta["shapes"], spec)
        return [(_unit_place(o.unit, f.name), spec.item(f)) for o in offered for f in o.formats]
    labels = list(inputs["candidates"].children)
    named = find_units(meta["config"], meta["shapes"], {unit_name(label) for label in labels})
    by_name = {u.name: u for u in named}
    chosen = [(label, by_name[unit_name(label)]) for label in labels]
    # By block, so that what is cached per block in memory is used again.
    return [(Place(label, u.block, u), spec) for label, u in sorted(chosen, key=lambda c: (c[1].block, c[0]))]


def _unit_place(unit: Unit, format_name: str) -> Place:
    return Place(item_name(unit.name, format_name), unit.block, unit)


def independent_items(bound: Bound, inputs: Mapping[str, Handle]) -> list[Item]:
    """The items of a model- or unit-scope node."""
    assert bound.step is not None
    step = bound.step
    memo: dict[tuple[str, str], str] = {}
    items = []
    for place, spec in places(bound, inputs):
        digests = {}
        for port, handle in inputs.items():
            view = step.views.get(port, "whole")
            # Parts that many items share (a unit's weights, a whole model) are digested once.
            about = place.label if view == "child" else place.unit.name if place.unit and view == "unit" else ""
            known = memo.get((port, about))
            if known is None:
                known = memo[(port, about)] = part_digest(handle, view, place)
            digests[port] = known
        items.append(make_item(step, spec, place, inputs, digests))
    return items


def block_item(bound: Bound, inputs: Mapping[str, Handle], block: int, carry: Handle | None) -> Item:
    """The item of block `block`, handed what block - 1 left."""
    step = bound.step
    assert step is not None and step.carry is not None
    place, spec = places(bound, inputs)[block]
    digests = {port: part_digest(h, step.views.get(port, "whole"), place) for port, h in inputs.items()}
    if carry is not None:
        inputs, digests = {**inputs, step.carry: carry}, {**digests, step.carry: carry.digest}
    return make_item(step, spec, place, inputs, digests)
