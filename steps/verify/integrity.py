"""Is a packed folder what was built: files, headers, each tensor's digest, each code, and its true bits per weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any

import torch

from schemas.errors import InputError
from steps.pack import container
from steps.pack.quantization_config import quantization_config, targeted
from steps.pack.read import PackedFolder


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


def check_folder(folder: Path) -> Sound:
    """InputError for the first thing that is wrong; reads every byte of the weights once or twice."""
    packed = PackedFolder(folder)
    _check_sizes(packed)
    _check_digests(packed)
    weights = _check_matrices(packed)
    _check_config(packed)
    found = _bits(packed, weights)
    _compare(packed, "bpw", found, packed.manifest["bpw"])
    formats = [fmt.name for fmt in packed.linears.values()]
    return Sound(
        format=packed.pack,
        files=len(packed.files),
        tensors=len(packed.homes),
        matrices={name: formats.count(name) for name in sorted(set(formats))},
        bytes=sum(f.size for f in packed.files.values()),
        bpw_linear=found["linear"],
        bpw_total=found["total"],
        origin=packed.manifest.get("origin", {}),
    )


def _check_sizes(packed: PackedFolder) -> None:
    """Every file is there, with the header that was written and the size that was predicted."""
    for name, file in packed.files.items():
        _compare_digest(str(file.path), "header", file.header, packed.manifest["headers"].get(name))
    size = sum(f.size for f in packed.files.values())
    _compare(packed, "bytes", size, packed.manifest["bytes"]["actual"])


def _check_digests(packed: PackedFolder) -> None:
    wanted = packed.manifest["sha256"]
    if missing := sorted(wanted.keys() ^ packed.homes.keys()):
        raise _altered(str(packed.folder), f"tensor {missing[0]}", "in one of manifest and files", "in both")
    for name, file in packed.homes.items():
        data = packed.tensor(name).reshape(-1).view(torch.uint8).numpy().data
        _compare_digest(f"{file.path}: {name}", "tensor", sha256(data).hexdigest(), wanted[name])


def _check_matrices(packed: PackedFolder) -> int:
    """Read every quantized matrix with all checks; returns their weights."""
    return sum(prod(packed.matrix(name).shape) for name in packed.linears)


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


def _bits(packed: PackedFolder, weights: int) -> dict[str, float]:
    """True bits per weight over the quantized matrices, and of the files over all weights of the model."""
    stored = sum(e.nbytes for name in packed.linears for e in packed.stored(name))
    size = {e.name: prod(e.shape) for file in packed.files.values() for e in file.entries}
    everything = weights + sum(size[name] for name in packed.plain)
    actual = sum(f.size for f in packed.files.values())
    return {"linear": 8 * stored / max(1, weights), "total": 8 * actual / everything}


def _compare(packed: PackedFolder, what: str, got: object, wanted: object) -> None:
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
