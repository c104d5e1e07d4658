"""llama.cpp's types: our bytes against the `gguf` package, which decodes all of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from ggufs import random_blocks
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import InputError
from schemas.format import GGML_BLOCKS, Ggml, GgmlType
from steps.pack.gguf import decode, encode
from steps.pack.gguf_file import BLOCKS, TYPE_NUMBERS
from steps.quantize.ggml.blocks import pack, unpack
from steps.quantize.ggml.kinds import KINDS
from steps.quantize.ggml.layout import LAYOUTS
from steps.quantize.tensors.ggml import GgmlTensor

TYPES: list[GgmlType] = list(GGML_BLOCKS)
SCALED = [kind for kind in TYPES if kind in KINDS]
GOLDEN = Path(__file__).parents[1] / "golden" / "ggml.json"


def oracle(kind: GgmlType, blocks_OB: torch.Tensor) -> np.ndarray:
    """The `gguf` package's decoding."""
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(blocks_OB.numpy(), gguf.GGMLQuantizationType[kind.upper()])


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(TYPES), st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**31))
def test_any_bytes_mean_what_gguf_says_they_mean(kind: GgmlType, rows: int, blocks: int, seed: int) -> None:
    """Bit for bit, infinities and NaN included."""
    generator = torch.Generator().manual_seed(seed)
    shape = rows, blocks * GGML_BLOCKS[kind].bytes
    blocks_OB = torch.randint(0, 256, shape, generator=generator).to(torch.uint8)
    tensor = GgmlTensor("m", Ggml(type=kind), blocks_OB)
    assert np.array_equal(tensor.dequantize().numpy(), oracle(kind, blocks_OB), equal_nan=True)
    assert tensor.shape == (rows, blocks * GGML_BLOCKS[kind].weights) and tensor.nbytes() == blocks_OB.numel()


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SCALED), st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**31))
def test_blocks_come_back_bit_for_bit(kind: GgmlType, rows: int, blocks: int, seed: int) -> None:
    blocks_OB = random_blocks(kind, rows, blocks, seed)
    codes_OI, grid = unpack(kind, blocks_OB)
    assert int(codes_OI.max()) < KINDS[kind].levels
    assert torch.equal(pack(codes_OI, grid), blocks_OB)
    assert torch.equal(grid.codes(grid.values(codes_OI)), codes_OI)


@pytest.mark.parametrize("kind", [kind for kind in SCALED if kind != "tq1_0"])
def test_every_bit_of_a_block_is_said_once(kind: GgmlType) -> None:
    bits = np.zeros((GGML_BLOCKS[kind].bytes, 8), int)
    layout = LAYOUTS[kind]
    for piece in layout.pieces:
        bits[piece.start : piece.start + piece.count, piece.shift : piece.shift + piece.bits] += 1
    for at in (layout.d, layout.dmin):
        if at is not None:
            bits[at : at + 2] += 1
    assert (bits == 1).all()


def test_sizes_and_numbers_are_those_of_the_package() -> None:
    for name, number in TYPE_NUMBERS.items():
        kind = gguf.GGMLQuantizationType[name.upper()]
        assert kind.value == number and gguf.GGML_QUANT_SIZES[kind] == (BLOCKS[name].weights, BLOCKS[name].bytes)


@pytest.mark.parametrize("kind", ["q8_0", "q5_0", "q4_0", "tq1_0", "tq2_0"])
def test_what_the_package_quantizes_we_read_and_write_back(kind: GgmlType) -> None:
    W_OI = torch.randn(3, 512, generator=torch.Generator().manual_seed(1)).numpy()
    blocks_OB = torch.from_numpy(gguf.quants.quantize(W_OI, gguf.GGMLQuantizationType[kind.upper()]))
    assert torch.equal(pack(*unpack(kind, blocks_OB)), blocks_OB)


@pytest.mark.parametrize("heads", [None, 4])
@pytest.mark.parametrize("kind", TYPES)
def test_the_file_holds_the_tensor_and_gives_it_back(kind: GgmlType, heads: int | None) -> None:
    """With heads, rows are those of llama.cpp's converter: its formula is the oracle."""
    q = GgmlTensor("m", Ggml(type=kind), random_blocks(kind, 16, 2))
    stored_OB = encode(q, heads)
    back = decode("m", q.format, stored_OB, heads)
    assert isinstance(back, GgmlTensor) and torch.equal(back.blocks_OB, q.blocks_OB)
    W_OI = q.dequantize()
    if heads is not None:
        W_OI = W_OI.reshape(heads, 2, 16 // heads // 2, -1).swapaxes(1, 2).reshape(W_OI.shape)
    assert np.array_equal(oracle(kind, stored_OB), W_OI.numpy())


@pytest.mark.parametrize("kind", ["tq1_0", "tq2_0"])
def test_bytes_that_are_no_codes_are_refused(kind: GgmlType) -> None:
    blocks_OB = random_blocks(kind, 4, 2)
    blocks_OB[2, 7] = 255 if kind == "tq2_0" else 1
    with pytest.raises(InputError, match="outside its grid"):
        decode("m", Ggml(type=kind), blocks_OB)


def test_golden_bytes_of_every_type() -> None:
    """sha256 of the blocks of fixed codes and scales, made by counting."""
    found = {}
    for kind in SCALED:
        block, facts = GGML_BLOCKS[kind], KINDS[kind]
        codes_OI = (torch.arange(2 * block.weights) * 7 % facts.levels).to(torch.uint8).view(1, -1)
        grid = unpack(kind, torch.zeros(1, 2 * block.bytes, dtype=torch.uint8))[1]
        for name, part in (("d_OS", grid.d_OS), ("dmin_OS", grid.dmin_OS)):
            if part is not None:
                part.copy_(torch.tensor([0.5, -0.125]) if name == "d_OS" else torch.tensor([0.25, 2.0]))
        for part in (grid.scale_OG, grid.min_OG):
            if part is not None:
                part.copy_(torch.arange(part.numel()).view(part.shape) * 5 % 2**facts.scale_bits)
        blocks_OB = pack(codes_OI, grid)
        assert np.array_equal(oracle(kind, blocks_OB), grid.decode(codes_OI).numpy())
        found[kind] = hashlib.sha256(blocks_OB.numpy().tobytes()).hexdigest()
    assert found == json.loads(GOLDEN.read_text())
