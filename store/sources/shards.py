"""Where each tensor's bytes lie in a checkpoint: safetensors headers and the shard index, read without trust.

Format: https://huggingface.co/docs/safetensors (8 bytes of length, JSON header, data).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

from schemas.errors import InputError
from store.sources.json_object import json_object
from store.sources.places import Place

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000  # safetensors, MAX_HEADER_SIZE
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64, "F64": 64,
    "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "C64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
_FETCH = "fetch this file again from where it came"


@dataclass(frozen=True)
class Span:
    """The bytes [start, stop) of file `shard` hold a tensor of this safetensors dtype and shape, row-major."""

    shard: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Shards:
    """All tensors of a checkpoint, and by shard what it was when its header was read: `identity` and header digest."""

    spans: dict[str, Span]
    versions: dict[str, dict[str, Any]]


def read_shards(place: Place) -> Shards:
    """Spans of every tensor of a checkpoint folder; one file goes before an index, as transformers has it."""
    names = place.names()
    if SINGLE in names:
        version = shard_version(place, SINGLE)
        return Shards(read_header(place, SINGLE), {SINGLE: version})
    if INDEX not in names:
        raise no_safetensors(place.where, list(names))
    where = f"{place.where}/{INDEX}"
    weight_map = _weight_map(json_object(place.read(INDEX), where, _FETCH), where)
    shards = sorted(set(weight_map.values()))
    missing = [s for s in shards if s not in names]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(shards)} shards are missing",
            where=where,
            got=", ".join(missing[:3]),
            wanted="every shard that the index names",
            fix="finish the download or the copy of this model",
        )
    versions = {shard: shard_version(place, shard) for shard in shards}
    spans = _merge({shard: read_header(place, shard) for shard in shards}, weight_map, where)
    return Shards(spans, versions)


def no_safetensors(where: str, files: list[str]) -> InputError:
    """The error for a model without safetensors weights, naming what there is instead."""
    pickles = [f for f in files if f.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if pickles:
        return InputError(
            "pickle checkpoints are not read, because reading one runs code from it",
            where=where,
            got=", ".join(pickles[:3]),
            wanted="model.safetensors, or model.safetensors.index.json and its shards",
            fix="convert it where you trust it: AutoModelForCausalLM.from_pretrained(old).save_pretrained(new)",
        )
    return InputError(
        "no weights found",
        where=where,
        got=", ".join(sorted(files)[:8]) or "an empty folder",
        wanted="model.safetensors, or model.safetensors.index.json and its shards",
        fix="point at the folder that holds them",
    )


def _weight_map(index: dict[str, Any], where: str) -> dict[str, str]:
    found = index.get("weight_map")
    if not isinstance(found, dict) or not found:
        raise InputError("shard index without a weight_map", where=where, wanted="tensor -> file name", fix=_FETCH)
    for tensor, shard in found.items():
        if not isinstance(shard, str) or not shard.endswith(".safetensors") or set(shard) & set("/\\\0"):
            raise InputError(
                "shard index names a file that is not a shard of this folder",
                where=f"{where}: {tensor}",
                got=repr(shard),
                wanted="the plain name of a .safetensors file",
                fix="do not use this checkpoint unless you know who wrote it",
            )
    return found


def _merge(read: dict[str, dict[str, Span]], weight_map: dict[str, str], where: str) -> dict[str, Span]:
    merged: dict[str, Span] = {}
    for shard, spans in read.items():
        for tensor, span in spans.items():
            if weight_map.get(tensor) != shard:
                raise _disagree(where, tensor, f"in {shard}, but the index says {weight_map.get(tensor, 'nothing')}")
            merged[tensor] = span
    for tensor in weight_map.keys() - merged.keys():
        raise _disagree(where, tensor, f"not in {weight_map[tensor]}, though the index says so")
    return merged


def _disagree(where: str, tensor: str, got: str) -> InputError:
    return InputError("shards and index disagree", where=f"{where}: {tensor}", got=got, fix=_FETCH)


def _damaged(where: str, got: object, wanted: str = "") -> InputError:
    return InputError("damaged safetensors file", where=where, got=got, wanted=wanted, fix=_FETCH)


def shard_version(place: Place, shard: str) -> dict[str, Any]:
    """Facts that tell whether a shard is still the same: its size and its header's sha256, and its place's identity
    for it under `file`, or None there when the place has none."""
    raw = _header(place, shard)
    return {
        "size": place.size(shard),
        "header": hashlib.sha256(raw).hexdigest(),
        "file": place.identity(shard),
    }


def read_header(place: Place, shard: str) -> dict[str, Span]:
    """Spans of one shard; reads no data."""
    where, size, raw = f"{place.where}/{shard}", place.size(shard), _header(place, shard)
    document = json_object(raw, f"{where} (header)", _FETCH)
    document.pop("__metadata__", None)
    base = 8 + len(raw)
    spans = {tensor: _span(shard, entry, base, f"{where}: {tensor}") for tensor, entry in document.items()}
    _check_cover(spans, base, size, where)
    return spans


def _header(place: Place, shard: str) -> bytearray:
    where, size = f"{place.where}/{shard}", place.size(shard)
    if size < 8:
        raise _damaged(where, f"{size} bytes", "at least 8 bytes")
    length = int.from_bytes(place.read(shard, 0, 8), "little")
    if length > MAX_HEADER_BYTES:
        raise _damaged(where, f"a header of {length} bytes", f"at most {MAX_HEADER_BYTES}")
    if 8 + length > size:
        raise _damaged(where, f"a file of {size} bytes, cut off within its header", f"{8 + length} bytes and more")
    return place.read(shard, 8, 8 + length)


def _span(shard: str, entry: Any, base: int, where: str) -> Span:
    """One header entry; `base` is where the file's data begins."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _damaged(where, repr(entry)[:200], "dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _damaged(where, f"dtype {dtype!r}", f"one of {', '.join(BITS)}")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise _damaged(where, f"shape {shape!r:.100}, offsets {offsets!r:.100}", "lists of integers, none negative")
    need, held = math.prod(shape) * BITS[dtype], (offsets[1] - offsets[0]) * 8
    if need != held:
        raise _damaged(where, f"{offsets[1] - offsets[0]} bytes", f"{need / 8:g} bytes for {dtype} {shape}")
    return Span(shard, dtype, tuple(shape), base + offsets[0], base + offsets[1])


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= 16 and all(type(v) is int and 0 <= v < 2**62 for v in value)


def _check_cover(spans: dict[str, Span], base: int, size: int, where: str) -> None:
    """The spans follow one another from the header to the file's last byte: no overlap, no gap, nothing cut off."""
    end = base
    for tensor, span in sorted(spans.items(), key=lambda item: (item[1].start, item[1].stop)):
        if span.start != end:
            kind = "overlaps the tensor before it" if span.start < end else "leaves a gap before it"
            raise _damaged(f"{where}: {tensor}", f"{kind}: begins at byte {span.start}", f"byte {end}")
        end = span.stop
    if end != size:
        raise _damaged(where, f"a file of {size} bytes", f"{end} bytes, by its header")
