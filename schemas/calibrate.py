"""Specs of what is read from outside and of what is collected on the original model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from schemas.base import Spec

LEAST_LENGTH = 16
"""Tokens of a window."""


class ModelSource(Spec):
    """A causal language model: a local Hugging Face folder, a Hub id with revision, or an fsspec URL of a folder."""

    step: Literal["model"]
    source: str = Field(min_length=1)
    revision: str | None = None


class TextSource(Spec):
    """Texts: a file, a folder of .txt/.md files, JSONL with a text field, `builtin:calibrate` or `builtin:evaluate`.

    `part` splits a text by document, so that two text nodes of one source share none: the fifth of different documents
    whose digests are least is held out, the others are kept.
    """

    step: Literal["text"]
    source: str = Field(min_length=1)
    field: str = "text"
    part: Literal["all", "kept", "held_out"] = "all"


class Tokenize(Spec):
    """Token windows of a text.

    stream    documents joined by the end token, cut into windows of `length`
    document  every document cut into windows of at most `length`, right-padded, so that results can be resampled by
              document

    `skip` windows are passed over first and at most `windows` are taken, spread evenly over documents in an order
    shuffled by `seed`, so that two disjoint slices of one text are two nodes with different `skip`.
    A `length` beyond the model's context is capped, and the result says so.
    """

    step: Literal["tokenize"]
    layout: Literal["stream", "document"]
    length: int = Field(default=256, ge=LEAST_LENGTH)
    windows: int = Field(default=128, ge=1)
    skip: int = Field(default=0, ge=0)
    seed: int = Field(default=0, ge=-(2**63), lt=2**63)


class Calibrate(Spec):
    """Per block, in order, on the original model: a Hessian per group of linears that share an input, ranges, norms."""

    step: Literal["calibrate"]
    batch: int = Field(default=16, ge=1)
    """Windows run through a block at once; changes memory, and the order of summation."""
    prior: float = Field(default=1.0, gt=0)
    """How much an expert's Hessian leans on its layer's: as much as this many tokens per input of the linear weigh."""
    ends: bool = False
    """Whether the last block's statistics have what an embedding and a head see, too."""


class Reference(Spec):
    """Final hidden states of the original: its logits, kept compactly."""

    step: Literal["reference"]
    batch: int = Field(default=16, ge=1)
