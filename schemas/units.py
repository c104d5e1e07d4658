"""What of a model is quantized, and how it is cut into units that each get one format."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from schemas.base import Spec
from schemas.format import Format, FormatField
from schemas.pattern import Pattern

Grouping = Literal["fused", "linears", "blocks"]


def _tagged(value: Any) -> Any:
    """`keep`, `allocate` or the name of a format as one of the tagged forms below; anything else passes through."""
    if isinstance(value, str):
        return {"kind": value} if value in ("keep", "allocate") else {"kind": "fixed", "format": value}
    return value


class Keep(Spec):
    """Stored as it is."""

    kind: Literal["keep"]


class Allocated(Spec):
    """Offered every format of the recipe; the allocator chooses."""

    kind: Literal["allocate"]


class Fixed(Spec):
    """Quantized to this format."""

    kind: Literal["fixed"]
    format: FormatField


Treatment = Annotated[Annotated[Keep | Allocated | Fixed, Field(discriminator="kind")], BeforeValidator(_tagged)]
"""In YAML `keep`, `allocate`, or the name of a format."""

KEEP = Keep(kind="keep")


class Ends(Spec):
    """Treatment of embedding and head, apart from each other."""

    embedding: Treatment = KEEP
    head: Treatment = KEEP


def _both(value: Any) -> Any:
    return {"embedding": value, "head": value} if isinstance(value, str) else value


EndsField = Annotated[Ends, BeforeValidator(_both)]
"""In YAML a word instead of the fields is for both."""


class Units(Spec):
    """How a model is cut.

    fused    linears that engines fuse and that share an input are one unit (q/k/v, gate/up); experts one by one
    linears  every linear is a unit
    blocks   every decoder block is a unit

    Embedding, head and routers of mixtures are kept, offered all formats, or fixed to one. A model whose head is its
    embedding has one such matrix: the two treatments must then be equal. What matches `keep` is not quantized at all.
    """

    grouping: Grouping = "fused"
    embedding: Treatment = KEEP
    head: Treatment = KEEP
    router: Treatment = KEEP
    keep: tuple[Pattern, ...] = ()


def formats_of(treatment: Keep | Allocated | Fixed, offered: tuple[Format, ...]) -> tuple[Format, ...]:
    """The formats that a treatment leaves of those that a recipe offers; none where the matrix is kept."""
    match treatment:
        case Keep():
            return ()
        case Allocated():
            return offered
        case Fixed():
            return (treatment.format,)
