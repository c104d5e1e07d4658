"""The writer against a hand-made golden file and against the safetensors library as reader and writer."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from schemas.errors import InputError
from steps.pack.header import Entry, entry, header_bytes
from steps.pack.safetensors_writer import SafetensorsWriter, safetensors_dtype

TENSORS = {
    "b.scale": torch.tensor([[1.5], [-2.0]], dtype=torch.bfloat16),
    "a.words": torch.tensor([[1], [-1]], dtype=torch.int32),
    "a.shape": torch.tensor([2, 3], dtype=torch.int64),
    "ü.byte": torch.tensor([7], dtype=torch.uint8),
}
GOLDEN = (
    '{"__metadata__":{"format":"pt"},'
    '"a.shape":{"dtype":"I64","shape":[2],"data_offsets":[0,16]},'
    '"a.words":{"dtype":"I32","shape":[2,1],"data_offsets":[16,24]},'
    '"b.scale":{"dtype":"BF16","shape":[2,1],"data_offsets":[24,28]},'
    '"ü.byte":{"dtype":"U8","shape":[1],"data_offsets":[28,29]}}'
)


def entries(tensors: dict[str, torch.Tensor]) -> list[Entry]:
    return [Entry(n, safetensors_dtype(t), tuple(t.shape)) for n, t in tensors.items()]


def write(path: Path, tensors: dict[str, torch.Tensor], order: list[str] | None = None) -> SafetensorsWriter:
    with SafetensorsWriter(path, entries(tensors), {"format": "pt"}) as writer:
        for name in order or list(tensors):
            writer.write(name, tensors[name])
    return writer


def test_golden_bytes(tmp_path: Path) -> None:
    writer = write(tmp_path / "f", TENSORS)
    text = GOLDEN.encode()
    text += b" " * (-len(text) % 8)
    data = b"\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0" + b"\1\0\0\0\xff\xff\xff\xff" + b"\xc0\x3f\x00\xc0" + b"\7"
    assert (tmp_path / "f").read_bytes() == len(text).to_bytes(8, "little") + text + data
    assert writer.header_bytes == 8 + len(text) and writer.header_bytes % 8 == 0
    assert writer.digests["b.scale"] == hashlib.sha256(b"\xc0\x3f\x00\xc0").hexdigest()


def test_the_library_reads_the_same_tensors_and_metadata_and_writes_a_file_of_the_same_size(tmp_path: Path) -> None:
    write(tmp_path / "f", TENSORS)
    found = load_file(tmp_path / "f")
    assert found.keys() == TENSORS.keys() and all(torch.equal(found[n], t) for n, t in TENSORS.items())
    with safe_open(tmp_path / "f", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert (tmp_path / "f").stat().st_size == len(save(TENSORS, {"format": "pt"}))


def test_bytes_depend_neither_on_the_order_of_writing_nor_on_strides(tmp_path: Path) -> None:
    write(tmp_path / "f", TENSORS)
    strided = {**TENSORS, "a.words": torch.tensor([[1, 5], [-1, 5]], dtype=torch.int32)[:, :1]}
    write(tmp_path / "g", strided, sorted(TENSORS, reverse=True))
    assert (tmp_path / "f").read_bytes() == (tmp_path / "g").read_bytes()


def test_every_tensor_is_aligned_to_its_element() -> None:
    odd = [entry("z", "uint8", [3]), entry("y", "bfloat16", [3]), entry("x", "int64", [1]), entry("w", "int32", [3])]
    assert b'"y":{"dtype":"BF16","shape":[3],"data_offsets":[20,26]}' in header_bytes(odd, {})


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("c", torch.zeros(1), "no such tensor"),
        ("b.scale", torch.zeros(2, 1), r"got: F32 \[2, 1\]\n  wanted: BF16 \[2, 1\]"),
        ("b.scale", torch.zeros(1, 2, dtype=torch.bfloat16), r"got: BF16 \[1, 2\]"),
        ("a.words", TENSORS["a.words"], "a second time"),
        ("b.scale", torch.zeros(2, 1, dtype=torch.complex64), "complex64"),
    ],
)
def test_a_tensor_that_was_not_announced_is_refused(
    tmp_path: Path, name: str, tensor: torch.Tensor, message: str
) -> None:
    writer = SafetensorsWriter(tmp_path / "f", entries(TENSORS), {})
    with pytest.raises(InputError, match=message), writer:
        writer.write("a.words", TENSORS["a.words"])
        writer.write(name, tensor)


def test_a_file_with_a_hole_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"(?s)not written.*3 missing"):
        write(tmp_path / "f", TENSORS, ["a.words"])


def test_a_dtype_that_is_not_written_names_the_tensor() -> None:
    with pytest.raises(InputError, match=r"(?s)where: m\.x.*float64"):
        entry("m.x", "float64", [1])
