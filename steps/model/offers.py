"""What a quantize node makes: every unit that the recipe cuts out of a model, with the formats it is offered.

Torch-free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from schemas.artifact import Unit
from schemas.errors import InputError
from schemas.format import Format
from schemas.quantize import Quantize
from schemas.structure import is_tied
from schemas.units import Keep, Units, formats_of
from steps.model.matching import matching
from steps.model.structure import Shapes, embedding_unit, experts_path, head_unit, routers, units


@dataclass(frozen=True)
class Offer:
    """A unit and the formats it is quantized to."""

    unit: Unit
    formats: tuple[Format, ...]


def offers(config: Mapping[str, Any], shapes: Shapes, spec: Quantize) -> list[Offer]:
    """In model order. InputError for a treatment that this model has no matrix for, and a pattern that matches nothing.

    Routers follow the units of all blocks.
    """
    asked = spec.units
    _check(config, asked)
    found = [Offer(embedding_unit(config, shapes), formats_of(asked.embedding, spec.formats))]
    found += [Offer(unit, spec.formats) for unit in units(config, shapes, asked.grouping)]
    choosing = routers(config, shapes)
    if not choosing and not isinstance(asked.router, Keep):
        raise InputError("the model has no router", where="units.router", fix="leave `router` out of the recipe")
    found += [Offer(unit, formats_of(asked.router, spec.formats)) for unit in choosing]
    if (head := head_unit(config, shapes)) is not None:
        found.append(Offer(head, formats_of(asked.head, spec.formats)))
    kept = _kept(asked, [offer.unit for offer in found])
    left = [offer for offer in found if offer.formats and offer.unit.name not in kept]
    if not left:
        raise InputError("nothing is left to quantize", where="units.keep", got=", ".join(asked.keep), fix="keep less")
    _check_whole_mixtures(left, [offer.unit for offer in found if offer.unit.name in kept])
    return left


def _check_whole_mixtures(left: Sequence[Offer], kept: Sequence[Unit]) -> None:
    """Every file format stores the experts of a block alike: all packed or all as they are."""
    packed = {path for offer in left for member in offer.unit.members if (path := experts_path(member)) is not None}
    for unit in kept:
        for member in unit.members:
            if experts_path(member) in packed:
                raise InputError(
                    "some experts of a block are kept and others are not",
                    where="keep",
                    got=f"{unit.name} kept",
                    wanted="all experts of a block, or none",
                    fix=f"keep `{experts_path(unit.name) or unit.name}.*`, or none of them",
                )


def _check(config: Mapping[str, Any], asked: Units) -> None:
    if is_tied(config) and asked.embedding != asked.head:
        raise InputError(
            "the head of this model is its embedding: they cannot be treated differently",
            where="embeddings",
            got=f"embedding {asked.embedding.kind}, head {asked.head.kind}",
            wanted="one treatment for both",
            fix="say `embeddings: keep`, `embeddings: allocate`, or `embeddings: FORMAT`",
        )


def _kept(asked: Units, found: list[Unit]) -> set[str]:
    """Names of the units that a pattern of `keep` matches."""
    return {u.name for i, pattern in enumerate(asked.keep) for u in matching(pattern, found, f"keep[{i}]")}
