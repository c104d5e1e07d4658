"""Our own container: QuantizedTensor <-> file tensors, and the `quantization_config` that describes them.

A matrix is stored as what the hub's `to_tensors` gives, whatever its family, so that a new family needs nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from schemas.errors import InputError
from schemas.format import Affine, Format, read_format
from steps.pack.header import SAFETENSORS_NAME
from steps.pack.manifest import VERSION, check_version
from steps.pack.parts import Parts, matrix_shape
from steps.pack.sizes import linear_entries
from steps.quantize.qtensor import QuantizedTensor, from_value
from steps.quantize.tensors.affine import AffineTensor
from steps.step import Output

METHOD = "bitsmith"
TORCH_DTYPE = {short: getattr(torch, name) for name, short in SAFETENSORS_NAME.items()}


@dataclass(frozen=True)
class Matrix:
    """One packed matrix as the config describes it; sha256 by the name of the part, for example `codes`."""

    name: str
    format: Format
    shape: tuple[int, int]
    sha256: Mapping[str, str]


def encode(q: QuantizedTensor) -> dict[str, torch.Tensor]:
    """The tensors that are stored for one matrix, by full name; InputError for a code that the grid has not."""
    if isinstance(q, AffineTensor):
        _check_codes(q)
    return q.to_tensors()


def decode(name: str, fmt: Format, shape: tuple[int, int], tensors: Mapping[str, torch.Tensor]) -> QuantizedTensor:
    """Undo `encode`, without checks: for tensors that `check` has seen."""
    meta = {"format": fmt.model_dump(mode="json"), "members": {name: {"shape": list(shape)}}}
    return from_value(Output(meta=meta, tensors=tensors), name)


def check(name: str, fmt: Format, shape: tuple[int, int], tensors: Mapping[str, torch.Tensor]) -> QuantizedTensor:
    """Undo `encode`; InputError for another form, spare bits that are set, or scales that are not finite."""
    scale = tensors.get(f"{name}.scale")
    dtype = "float16" if scale is not None and scale.dtype == torch.float16 else "bfloat16"
    for e in linear_entries("bitsmith", name, fmt, shape, dtype):
        found = tensors.get(e.name)
        if found is None or found.dtype != TORCH_DTYPE[e.dtype] or tuple(found.shape) != e.shape:
            raise InputError(
                "a packed tensor has the wrong form",
                where=e.name,
                got="nothing" if found is None else f"{found.dtype} {list(found.shape)}",
                wanted=f"{TORCH_DTYPE[e.dtype]} {list(e.shape)}",
                fix="repack the model",
            )
    q = decode(name, fmt, shape, tensors)
    for part, again in q.to_tensors().items():
        if not torch.equal(_bytes(again), _bytes(tensors[part])):
            raise InputError("packed codes have spare bits set", where=part, wanted="zeros", fix="repack the model")
    return q


def settings(parts: Parts, digests: Mapping[str, str]) -> dict[str, Any]:
    """The `quantization_config` of config.json; `digests` are of all tensors in the files."""
    modules = {}
    for name, fmt in parts.linears.items():
        shape = matrix_shape(parts, name)
        stored = [e.name for e in linear_entries("bitsmith", name, fmt, shape)]
        sha256 = {full.removeprefix(f"{name}."): digests[full] for full in stored}
        modules[name] = {"format": fmt.name, "shape": list(shape), "sha256": sha256}
    formats = {fmt.name: fmt.model_dump(mode="json") for fmt in parts.linears.values()}
    return {"quant_method": METHOD, "version": VERSION, "formats": formats, "modules": modules}


def matrices(document: Mapping[str, Any], where: str) -> list[Matrix]:
    """The packed matrices of a `quantization_config`; InputError for another version or an unreadable document."""
    check_version(document.get("version"), where)
    try:
        formats = {name: read_format(fields) for name, fields in document["formats"].items()}
        return [
            Matrix(name, formats[m["format"]], (int(m["shape"][0]), int(m["shape"][1])), dict(m["sha256"]))
            for name, m in document["modules"].items()
        ]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(
            "the quantization_config of a packed model cannot be read", where=where, got=error, fix="build it again"
        ) from error


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Equality of bits: a NaN is itself."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _check_codes(q: AffineTensor) -> None:
    fmt: Affine = q.format
    low = 0 if fmt.symmetry == "asymmetric" else -(1 << (fmt.bits - 1))
    high = low + (1 << fmt.bits) - 1
    least, most = int(q.codes_OI.min()), int(q.codes_OI.max())
    if least < low or most > high:
        raise InputError(
            "a code is outside its grid",
            where=q.name,
            got=f"{least}..{most}",
            wanted=f"{low}..{high}",
            fix="requantize the unit",
        )
