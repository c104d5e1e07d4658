"""compressed-tensors `pack-quantized`: QuantizedTensor <-> file tensors.

O outputs, I inputs, G groups per row, W int32 words per row, b bits. Layout (compressed-tensors 0.20.0,
compressors/pack_quantized/helpers.py, `pack_to_int32`): code i of a row, shifted into [0, 2^b-1] by adding 2^(b-1) when
it is signed, occupies bits i*b to (i+1)*b-1 of the row read as one little-endian number; rows end at whole words, spare
bits are zero. Zero points are packed the same way down the columns.

Which engine loads what is in engines.py; fused q/k/v and gate/up share one format here, as engines that fuse them want.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from schemas.errors import InputError
from schemas.format import Affine
from steps.ops.bitpack import pack_rows, unpack_rows
from steps.pack.sizes import groups, words
from steps.quantize.qtensor import QuantizedTensor, affine
from steps.quantize.tensors.affine import AffineTensor


def pack_words(codes_OI: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes in [0, 2^bits-1] -> int32 [O, W]; InputError when a code is outside."""
    low, high = int(codes_OI.min()), int(codes_OI.max())
    if low < 0 or high >= 1 << bits:
        raise InputError(
            "a code is outside its grid",
            got=f"{low}..{high}",
            wanted=f"0..{(1 << bits) - 1}",
            fix="requantize the unit",
        )
    rows, columns = codes_OI.shape
    padded_OB = torch.zeros(rows, 4 * words(columns, bits), dtype=torch.uint8)
    packed_OB = pack_rows(codes_OI, bits)
    padded_OB[:, : packed_OB.shape[1]] = packed_OB
    return padded_OB.view(torch.int32)


def unpack_words(words_OW: torch.Tensor, bits: int, shape: tuple[int, int], where: str = "") -> torch.Tensor:
    """Undo `pack_words`: uint8 of `shape` (O, I); InputError for another dtype or shape and for set spare bits."""
    rows, columns = shape
    if words_OW.dtype != torch.int32 or tuple(words_OW.shape) != (rows, words(columns, bits)):
        raise InputError(
            "packed codes have the wrong form",
            where=where,
            got=f"{words_OW.dtype} {list(words_OW.shape)}",
            wanted=f"torch.int32 [{rows}, {words(columns, bits)}]",
            fix="repack the model",
        )
    bytes_OB = words_OW.contiguous().view(torch.uint8)
    codes_OI = unpack_rows(bytes_OB[:, : -(-columns * bits // 8)], bits, columns, signed=False)
    if not torch.equal(pack_words(codes_OI, bits), words_OW):
        raise InputError("packed codes have spare bits set", where=where, wanted="zeros", fix="repack the model")
    return codes_OI


def file_tensors(q: AffineTensor) -> dict[str, torch.Tensor]:
    """The tensors that are stored for one linear, by full name; codes are re-laid, never re-rounded."""
    codes_OI = q.codes_OI if q.format.symmetry == "asymmetric" else _raised(q.codes_OI, q.format.bits)
    tensors = {
        f"{q.name}.weight_packed": pack_words(codes_OI, q.format.bits),
        f"{q.name}.weight_scale": q.scale_OG,
        f"{q.name}.weight_shape": torch.tensor(q.shape, dtype=torch.int64),
    }
    if q.zero_point_OG is not None:
        zero_point_GO = q.zero_point_OG.to(torch.int16).T
        tensors[f"{q.name}.weight_zero_point"] = pack_words(zero_point_GO, q.format.bits).T.contiguous()
    return tensors


def from_file_tensors(name: str, fmt: Affine, tensors: Mapping[str, torch.Tensor]) -> AffineTensor:
    """Undo `file_tensors`, bit for bit; InputError when the tensors cannot be a linear in this format."""
    rows, columns = (int(n) for n in tensors[f"{name}.weight_shape"])
    scale_OG = tensors[f"{name}.weight_scale"]
    wanted = [rows, groups(fmt, (rows, columns), name)]
    if list(scale_OG.shape) != wanted:
        raise InputError("scales have the wrong shape", where=name, got=list(scale_OG.shape), wanted=wanted)
    codes_OI = unpack_words(tensors[f"{name}.weight_packed"], fmt.bits, (rows, columns), name)
    if fmt.symmetry == "asymmetric":
        zero_point_GO = unpack_words(tensors[f"{name}.weight_zero_point"].T, fmt.bits, (wanted[1], rows), name)
        return AffineTensor(name, fmt, codes_OI, scale_OG, zero_point_GO.T.contiguous())
    return AffineTensor(name, fmt, _lowered(codes_OI, fmt.bits), scale_OG)


def encode(q: QuantizedTensor) -> dict[str, torch.Tensor]:
    """`file_tensors` of any matrix; InputError for a family that this file format has not."""
    return file_tensors(affine(q, "compressed-tensors"))


def _raised(codes_OI: torch.Tensor, bits: int) -> torch.Tensor:
    """Signed codes plus 2^(bits-1), one byte each: int8 below 8 bits, where what wraps was outside; uint8 at 8."""
    return codes_OI.view(torch.uint8) ^ 0x80 if bits == 8 else codes_OI + (1 << (bits - 1))


def _lowered(codes_OI: torch.Tensor, bits: int) -> torch.Tensor:
    """Undo `_raised`: int8."""
    return (codes_OI ^ 0x80).view(torch.int8) if bits == 8 else codes_OI.view(torch.int8) - (1 << (bits - 1))
