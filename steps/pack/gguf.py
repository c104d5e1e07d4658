"""GGUF for llama.cpp: QuantizedTensor <-> the bytes of a tensor, and a whole file.

O outputs, I inputs, G groups per row, B bytes of a row. Nothing is rounded here: K-quants and their like are blocks
already, integers of 4, 5 and 8 bits with a scale per group become blocks of 32 with the same codes and scales.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any

import torch

from schemas.errors import InputError
from schemas.format import Affine, Format, Ggml
from steps.pack.folder import CONFIG, Written, write_json
from steps.pack.gguf_file import Info, header_bytes, padded
from steps.pack.gguf_metadata import rope_factors
from steps.pack.gguf_names import heads_of, infos, matrix_type
from steps.pack.gguf_sizes import extra, metadata
from steps.pack.parts import Parts, plain, quantized
from steps.quantize.ggml.blocks import pack, unpack
from steps.quantize.ggml.kinds import KINDS
from steps.quantize.grids.ggml import GgmlGrid
from steps.quantize.qtensor import QuantizedTensor
from steps.quantize.tensors.affine import AffineTensor
from steps.quantize.tensors.ggml import GgmlTensor
from steps.step import Env, Value

FILE = "model.gguf"


def row_order(rows: int, heads: int | None) -> torch.Tensor:
    """Which row of a matrix is stored at each place: pairs (i, i + half) of a head become neighbours."""
    place_O = torch.arange(rows)
    return place_O if heads is None else place_O.view(heads, 2, -1).transpose(1, 2).reshape(-1)


def encode(q: QuantizedTensor, heads: int | None = None) -> torch.Tensor:
    """The stored bytes of a matrix, uint8 [O, B]; InputError when they cannot say exactly what `q` says."""
    match q:
        case GgmlTensor():
            blocks_OB = q.blocks_OB
        case AffineTensor():
            blocks_OB = _blocks(q)
        case _:
            raise InputError("GGUF cannot hold a format", where=q.name, got=q.format.name, fix="pack to bitsmith")
    return blocks_OB[row_order(len(blocks_OB), heads)]


def decode(name: str, fmt: Format, blocks_OB: torch.Tensor, heads: int | None = None) -> QuantizedTensor:
    """Undo `encode`, bit for bit, scales of affine formats in fp16; InputError for codes that no level exists for."""
    found_OB = torch.empty_like(blocks_OB)
    found_OB[row_order(len(blocks_OB), heads)] = blocks_OB
    match fmt:
        case Ggml():
            _check_codes(name, fmt, found_OB)
            return GgmlTensor(name, fmt, found_OB)
        case Affine():
            return _affine(name, fmt, found_OB)
        case _:
            raise InputError("GGUF cannot hold a format", where=name, got=fmt.name, fix="pack to bitsmith")


def _check_codes(name: str, fmt: Ggml, blocks_OB: torch.Tensor) -> None:
    """Ternary types alone can hold bytes that say nothing: a fourth code, a number that no three-digit code makes."""
    if fmt.type in ("tq1_0", "tq2_0") and not torch.equal(pack(*_legal(fmt, blocks_OB)), blocks_OB):
        raise InputError("a code is outside its grid", where=name, wanted="-1, 0 or 1", fix="build it again")


def _legal(fmt: Ggml, blocks_OB: torch.Tensor) -> tuple[torch.Tensor, GgmlGrid]:
    assert fmt.type != "f16"
    codes_OI, grid = unpack(fmt.type, blocks_OB)
    return codes_OI.clamp(max=KINDS[fmt.type].levels - 1), grid


def _blocks(q: AffineTensor) -> torch.Tensor:
    kind = matrix_type(q.format, q.name)
    per_scale = q.shape[1] // q.scale_OG.shape[1] // KINDS[kind].group
    half_OG = q.scale_OG.half()
    if not torch.equal(half_OG.float(), q.scale_OG.float()):
        raise InputError(
            "a scale is too small or too large for GGUF",
            where=q.name,
            got=f"{float(q.scale_OG[half_OG.float() != q.scale_OG.float()][0]):g}",
            wanted="a number that fp16 holds exactly",
            fix=f"quantize to {kind} itself",
        )
    grid = GgmlGrid(kind, half_OG.repeat_interleave(per_scale, dim=1))
    return pack((q.codes_OI.to(torch.int16) + KINDS[kind].zero).to(torch.uint8), grid)


def _affine(name: str, fmt: Affine, blocks_OB: torch.Tensor) -> AffineTensor:
    kind = matrix_type(fmt, name)
    codes_OI, grid = unpack(kind, blocks_OB)
    per_scale = fmt.columns(codes_OI.shape[1]) // KINDS[kind].group
    signed_OI = (codes_OI.to(torch.int16) - KINDS[kind].zero).to(torch.int8)
    return AffineTensor(name, fmt, signed_OI, grid.d_OS[:, ::per_scale].contiguous())


def write(parts: Parts, model: Value, env: Env) -> Written:
    """Stream every parameter into the file, one at a time; beside it goes the model's own config.json."""
    told = metadata(parts.config, model.files)
    listed = infos(parts.config, parts.shapes, parts.dtypes, parts.linears)
    others = extra(parts.config)
    path = env.scratch / FILE
    header, digests = header_bytes(told, [*listed.values(), *others]), {}
    with path.open("xb") as file:
        file.write(header)
        for done, (name, info) in enumerate(listed.items()):
            env.progress(done, len(listed), name)
            digests[info.name] = _append(file, info, _bytes(parts, model, name))
        for info in others:
            digests[info.name] = _append(file, info, torch.tensor(rope_factors(parts.config)).view(torch.uint8))
        file.flush()
        os.fsync(file.fileno())
    config = write_json(env.scratch / CONFIG, parts.config)
    return Written(
        files={FILE: path, CONFIG: config},
        weights=(FILE,),
        header=len(header),
        tensors=dict(sorted(digests.items())),
        headers={FILE: hashlib.sha256(header).hexdigest()},
    )


def _append(file: Any, info: Info, stored: torch.Tensor) -> str:
    """Write a tensor and the padding after it; its sha256."""
    data = stored.contiguous().reshape(-1).numpy().data
    assert len(data) == info.nbytes, f"{info.name}: {len(data)} bytes, announced {info.nbytes}"
    file.write(data)
    file.write(bytes(padded(info.nbytes) - info.nbytes))
    return hashlib.sha256(data).hexdigest()


def _bytes(parts: Parts, model: Value, name: str) -> torch.Tensor:
    """What is stored for one parameter, uint8."""
    linear, heads = name.removesuffix(".weight"), heads_of(parts.config, name)
    if linear in parts.linears:
        return encode(quantized(parts, linear), heads)
    tensor = plain(parts, model, name)
    tensor = tensor.float() if tensor.dim() == 1 else tensor
    return tensor[row_order(len(tensor), heads)].contiguous().view(torch.uint8)
