"""Is a packed folder what was built: files, headers, each tensor's digest, each code, and its true bits per weight."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from schemas.errors import InputError
from steps.model.structure import IN_BLOCKS
from steps.pack import container
from steps.pack.manifest import read_manifest
from steps.pack.quantization_config import quantization_config, targeted
from steps.pack.read import PackedFolder
from steps.pack.shards import INDEX
from steps.verify.gguf_folder import GgufFolder


@dataclass(frozen=True)
class Sound:
    """Facts of a folder in which nothing is wrong; bits per weight are derived from the files."""

    format: str
    files: int
    tensors: int
    matrices: Mapping[str, int]
    """Format -> quantized matrices in it."""
    bytes: int
    bpw_linear: float
    bpw_total: float
    origin: Mapping[str, Any]


Packed = PackedFolder | GgufFolder


def open_packed(folder: Path) -> Packed:
    """A packed folder of any file format; InputError when it is none."""
    return GgufFolder(folder) if read_manifest(folder)["format"] == "gguf" else PackedFolder(folder)


def check_folder(folder: Path) -> Sound:
    """InputError for the first thing that is wrong; reads every byte of the weights once or twice."""
    packed = open_packed(folder)
    _check_sizes(packed)
    _check_digests(packed)
    weights = {name: prod(packed.matrix(name).shape) for name in packed.linears}
    if isinstance(packed, PackedFolder):
        _check_config(packed)
        check_index(packed)
    found = _bits(packed, weights)
    _compare(packed, "bpw", found, packed.manifest["bpw"])
    formats = [fmt.name for fmt in packed.linears.values()]
    return Sound(
        format=packed.pack,
        files=len(packed.files),
        tensors=len(packed.names),
        matrices={name: formats.count(name) for name in sorted(set(formats))},
        bytes=sum(f.size for f in packed.files.values()),
        bpw_linear=found["linear"],
        bpw_total=found["total"],
        origin=packed.manifest.get("origin", {}),
    )


def _check_sizes(packed: Packed) -> None:
    """Every file is there, with the header that was written and the size that was predicted."""
    for name, file in packed.files.items():
        _compare_digest(str(file.path), "header", file.header, packed.manifest["headers"].get(name))
    size = sum(f.size for f in packed.files.values())
    _compare(packed, "bytes", size, packed.manifest["bytes"]["actual"])


def _check_digests(packed: Packed) -> None:
    wanted = packed.manifest["sha256"]
    if missing := sorted(wanted.keys() ^ set(packed.names)):
        raise _altered(str(packed.folder), f"tensor {missing[0]}", "in one of manifest and files", "in both")
    for name in packed.names:
        _compare_digest(f"{packed.folder}: {name}", "tensor", packed.digest(name), wanted[name])


def _check_config(packed: PackedFolder) -> None:
    """config.json tells a loader the formats that are in the files."""
    told = packed.config.get("quantization_config", {})
    where = str(packed.folder / "config.json")
    if packed.pack == "compressed-tensors":
        groups = told.get("config_groups", {}).values()
        ordered = set[str]()
        for group in groups:
            if group.get("weights", {}).get("actorder"):
                ordered |= targeted(group["targets"], packed.linears)
        if told != quantization_config(packed.linears, ordered):
            raise _altered(where, "quantization_config", "other formats than are packed", "those of bitsmith.json")
    else:
        found = container.matrices(told, where)
        digests = {f"{m.name}.{part}": digest for m in found for part, digest in m.sha256.items()}
        if {m.name: m.format for m in found} != packed.linears or not digests.items() <= packed.manifest[
            "sha256"
        ].items():
            raise _altered(where, "quantization_config", "other formats than are packed", "those of bitsmith.json")


def check_index(packed: PackedFolder) -> None:
    """The index beside several weights files says where each tensor is, which a loader of the whole goes by."""
    if len(packed.files) == 1:
        return
    path = packed.folder / INDEX
    try:
        told = json.loads(path.read_text("utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _altered(str(path), "index", f"{type(error).__name__}: {error}", "a weight_map") from error
    if told != {name: file.path.name for name, file in packed.homes.items()}:
        raise _altered(str(path), "index", "tensors in other files than they are in", "every tensor, and its file")


def _bits(packed: Packed, weights: Mapping[str, int]) -> dict[str, float]:
    """True bits per weight over the blocks' quantized linears, and of the files over all weights of the model."""
    inside = [name for name in weights if name.startswith(IN_BLOCKS)]
    stored = sum(packed.stored_bytes(name) for name in inside)
    actual, everything = sum(f.size for f in packed.files.values()), sum(weights.values()) + packed.plain_weights
    return {"linear": 8 * stored / max(1, sum(weights[name] for name in inside)), "total": 8 * actual / everything}


def _compare(packed: Packed, what: str, got: object, wanted: object) -> None:
    if got != wanted:
        raise _altered(str(packed.folder), what, str(got), str(wanted))


def _compare_digest(where: str, what: str, got: str, wanted: object) -> None:
    if got != wanted:
        raise _altered(where, what, f"sha256 {got}", f"sha256 {wanted}")


def _altered(where: str, what: str, got: str, wanted: str) -> InputError:
    return InputError(
        f"the packed folder is not what was built: {what}",
        where=where,
        got=got,
        wanted=wanted,
        fix="copy the folder again, or build it again",
    )
