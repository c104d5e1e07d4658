"""Whether a packed model is loaded whole or block by block: told by the spec and the model's size alone. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from schemas.verify import Generate, Loading, Measure, Verify, WholeOrBlocks

FP32 = 4
BY_BLOCKS = "as the model was loaded block by block to bound memory"
"""Why something that needs the whole model was not measured, for people."""


def whole_bytes(shapes: Mapping[str, Sequence[int]]) -> int:
    """Bytes of all weights in fp32, which is what a model that is loaded whole is widened to."""
    return FP32 * sum(prod(shape) for shape in shapes.values())


def resolve(load: Loading, limit: int, shapes: Mapping[str, Sequence[int]]) -> WholeOrBlocks:
    """`auto` is whole for a model that in fp32 takes at most `limit` bytes, whatever memory this machine has."""
    if load != "auto":
        return load
    return "whole" if whole_bytes(shapes) <= limit else "blocks"


def asked(spec: Verify | Measure | Generate, shapes: Mapping[str, Sequence[int]]) -> WholeOrBlocks:
    """`resolve` of a step's spec."""
    return resolve(spec.load, spec.whole_bytes, shapes)
