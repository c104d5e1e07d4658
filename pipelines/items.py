"""What a node's work consists of: items, each with the parts of its inputs that it needs and the key these make."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipelines.code_id import code_of
from pipelines.graph import Bound
from schemas.artifact import Unit, item_name
from schemas.base import Spec, digest_of
from schemas.quantize import Quantize
from steps.model.structure import block_prefix, units
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
    names = [n for n in model.meta["shapes"] if n.startswith(block_prefix(block))]
    return [*names, "model.embed_tokens.weight"] if block == 0 else names


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
    model_units = units(meta["config"], meta["shapes"])
    if isinstance(spec, Quantize):
        return [(Place(item_name(u.name, f.name), u.block, u), spec.item(f)) for u in model_units for f in spec.formats]
    by_name = {u.name: u for u in model_units}
    labels: Iterator[str] = iter(inputs["candidates"].children)
    chosen = [(label, by_name[label.rpartition("/")[0]]) for label in labels]
    # By block, so that what is cached per block in memory is used again.
    return [(Place(label, u.block, u), spec) for label, u in sorted(chosen, key=lambda c: (c[1].block, c[0]))]


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
