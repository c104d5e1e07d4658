"""File formats of a build, and the engines that read them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from schemas.base import Spec

PackFormat = Literal["compressed-tensors", "bitsmith", "gguf"]
Engine = Literal["transformers", "vllm", "llama.cpp"]


class Packing(Spec):
    """How the weights are filed.

    compressed-tensors  a folder that plain transformers loads: integers with a scale per group
    bitsmith            a folder in our own container, which holds every format; see steps/pack/README.md
    gguf                one file for llama.cpp, tokenizer included: its own types, and integers of 4, 5 and 8 bits
    """

    format: PackFormat = "compressed-tensors"
    shard_bytes: int | None = Field(default=None, ge=1)
    """Begin another weights file before one holds more than this many bytes of tensors; a matrix is never cut."""

    @model_validator(mode="after")
    def _one_file(self) -> Packing:
        if self.format == "gguf" and self.shard_bytes is not None:
            raise ValueError("gguf is written as one file: leave shard_bytes out, or choose another format")
        return self


def parse_packing(value: Any) -> Any:
    """`compressed-tensors` -> the fields of a Packing; anything but a string passes through."""
    return {"format": value} if isinstance(value, str) else value


PackingField = Annotated[Packing, BeforeValidator(parse_packing)]


def parse_packings(value: Any) -> Any:
    """One packing, or several in a list, as a tuple."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _once(packings: tuple[Packing, ...]) -> tuple[Packing, ...]:
    formats = [p.format for p in packings]
    if len(set(formats)) != len(formats):
        raise ValueError("a file format is listed twice")
    return packings


PackingsField = Annotated[
    tuple[PackingField, ...], Field(min_length=1), BeforeValidator(parse_packings), AfterValidator(_once)
]
"""The file formats of one build; the plan is priced for the first."""


class Pack(Spec):
    """Write the selection and everything around it as one folder that an engine loads."""

    step: Literal["pack"]
    format: PackFormat = "compressed-tensors"
    shard_bytes: int | None = Field(default=None, ge=1)
    target: Engine | None = None
    """Refuse whatever this engine cannot run; when unsaid, the engine is the file format's own."""

    @model_validator(mode="after")
    def _possible(self) -> Pack:
        _ = self.packing  # raises what cannot be
        return self

    @property
    def packing(self) -> Packing:
        """Its layout alone."""
        return Packing(format=self.format, shard_bytes=self.shard_bytes)
