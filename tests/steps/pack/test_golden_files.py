"""Bytes of every file format, pinned: what was written must stay readable.

The oracles are written out by hand for one small matrix; the rest are digests. After a deliberate change of a format,
which needs a new version of the manifest: BITSMITH_UPDATE_GOLDEN=1 pytest tests/steps/pack/test_golden_files.py
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from packables import random_quantized

from schemas.format import Affine, read_format
from schemas.pack import PackFormat
from steps.pack import compressed_tensors, container
from steps.quantize.tensors.affine import AffineTensor

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "packed.json"
FORMATS = [
    f"int{bits}-{group}{suffix}" for bits in (2, 3, 4, 5, 6, 8) for group in ("g32", "row") for suffix in ("", "-asym")
]


def test_a_signed_matrix_byte_by_byte() -> None:
    """int3, codes -4 .. 3: two's complement 100 101 110 111 000 001 010 011, lowest bits first."""
    codes_OI = torch.tensor([[-4, -3, -2, -1, 0, 1, 2, 3]], dtype=torch.int8)
    q = AffineTensor("m", Affine(bits=3, group_size="row"), codes_OI, torch.tensor([[-0.5]], dtype=torch.bfloat16))
    word = sum((code & 7) << (3 * i) for i, code in enumerate(range(-4, 4)))
    raised = sum(i << (3 * i) for i in range(8))
    ours = container.encode(q)
    assert bytes(ours["m.codes"].flatten().tolist()) == word.to_bytes(3, "little")
    assert ours["m.scale"].view(torch.uint8).flatten().tolist() == [0x00, 0xBF]
    theirs = compressed_tensors.encode(q)
    assert theirs["m.weight_packed"].tolist() == [[raised]]
    assert theirs["m.weight_shape"].tolist() == [1, 8]


def test_an_asymmetric_matrix_byte_by_byte() -> None:
    codes_OI = torch.tensor([[0, 15, 7], [1, 2, 3]], dtype=torch.uint8)
    scale_OG, zero_OG = torch.ones(2, 1, dtype=torch.float16), torch.tensor([[9], [4]], dtype=torch.uint8)
    q = AffineTensor("m", Affine(bits=4, group_size="row", symmetry="asymmetric"), codes_OI, scale_OG, zero_OG)
    ours = container.encode(q)
    assert ours["m.codes"].tolist() == [[0xF0, 0x07], [0x21, 0x03]] and ours["m.zero_point"].tolist() == [[9], [4]]
    theirs = compressed_tensors.encode(q)
    assert theirs["m.weight_packed"].tolist() == [[0x7F0], [0x321]]
    assert theirs["m.weight_zero_point"].tolist() == [[0x49]]


def digests(pack: PackFormat) -> dict[str, str]:
    """sha256 over the stored bytes of one random matrix per format, tensors by name."""
    encode = compressed_tensors.encode if pack == "compressed-tensors" else container.encode
    found = {}
    for name in FORMATS:
        tensors = encode(random_quantized("m", read_format(name), (5, 96), seed=7))
        raw = b"".join(tensors[n].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for n in sorted(tensors))
        found[name] = hashlib.sha256(raw).hexdigest()[:16]
    return found


@pytest.mark.parametrize("pack", ["compressed-tensors", "bitsmith"])
def test_bytes_are_those_of_the_golden_file(pack: PackFormat) -> None:
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("BITSMITH_UPDATE_GOLDEN"):
        golden[pack] = digests(pack)
        GOLDEN.write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n")
    assert golden[pack] == digests(pack)
