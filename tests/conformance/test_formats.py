"""Every format that can be said, through the file format and back, against the library's own packer as oracle."""

from __future__ import annotations

from itertools import product
from typing import get_args

import pytest
import torch
from packables import random_quantized

from schemas.errors import InputError
from schemas.pack import PackFormat
from schemas.quantize import Bits, Format, GroupSize, Symmetry
from steps.pack.compressed_tensors import file_tensors, from_file_tensors, pack_words
from steps.pack.quantization_config import refusals
from steps.pack.safetensors_writer import safetensors_dtype
from steps.pack.sizes import linear_bytes, linear_entries

FORMATS = [
    Format(bits=b, group_size=g, symmetry=s)
    for b, g, s in product(get_args(Bits), get_args(GroupSize), get_args(Symmetry))
]
NAMES = [f.name for f in FORMATS]


def shape_of(form: Format) -> tuple[int, int]:
    """Rows are no multiple of 32 codes, except where the group size makes them one."""
    return (7, 3 * 37) if form.group_size == "row" else (7, 3 * form.group_size)


@pytest.mark.parametrize("form", FORMATS, ids=NAMES)
def test_a_packed_linear_comes_back_bit_for_bit_and_is_as_large_as_predicted(form: Format) -> None:
    q = random_quantized("m.q_proj", form, shape_of(form), seed=form.bits)
    tensors = file_tensors(q)
    back = from_file_tensors(q.name, form, tensors)
    assert torch.equal(back.codes_OI, q.codes_OI) and back.codes_OI.dtype == q.codes_OI.dtype
    assert torch.equal(back.scale_OG, q.scale_OG)
    assert (back.zero_point_OG is None) == (q.zero_point_OG is None)
    if q.zero_point_OG is not None and back.zero_point_OG is not None:
        assert torch.equal(back.zero_point_OG, q.zero_point_OG)
    (pack,) = get_args(PackFormat)
    assert linear_bytes(pack, form, q.shape) == sum(t.numel() * t.element_size() for t in tensors.values())
    announced = {e.name: (e.dtype, e.shape) for e in linear_entries(q.name, form, q.shape)}
    assert announced == {n: (safetensors_dtype(t), tuple(t.shape)) for n, t in tensors.items()}


@pytest.mark.parametrize("form", FORMATS, ids=NAMES)
def test_the_library_unpacks_to_our_dequantized_weights(form: Format) -> None:
    from compressed_tensors.compressors import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    from steps.pack.quantization_config import quantization_config

    q = random_quantized("q", form, shape_of(form), seed=1)
    (group,) = quantization_config({"q": form})["config_groups"].values()
    scheme = QuantizationScheme(targets=group["targets"], weights=QuantizationArgs(**group["weights"]))
    local = {name.removeprefix("q."): t for name, t in file_tensors(q).items()}
    dense = PackedQuantizationCompressor.decompress(local, scheme)["weight"]
    assert torch.equal(dense, q.dequantize().bfloat16())


@pytest.mark.parametrize("bits", get_args(Bits))
@pytest.mark.parametrize("columns", [1, 31, 32, 33, 100, 128])
def test_words_are_those_of_the_library(bits: int, columns: int) -> None:
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    generator = torch.Generator().manual_seed(bits)
    codes_OI = torch.randint(0, 1 << bits, (5, columns), generator=generator)
    signed_OI = (codes_OI - (1 << (bits - 1))).to(torch.int8)
    assert torch.equal(pack_words(codes_OI, bits), pack_to_int32(signed_OI, bits))


@pytest.mark.parametrize("form", FORMATS, ids=NAMES)
def test_only_asymmetric_is_refused_and_the_reason_names_what_works(form: Format) -> None:
    reasons = refusals([form], {"dtype": "bfloat16"})
    assert bool(reasons) == (form.symmetry == "asymmetric")
    if reasons:
        other = Format(bits=form.bits, group_size=form.group_size)
        assert form.name in reasons[0] and other.name in reasons[0]
        assert refusals([other], {"dtype": "bfloat16"}) == []


def test_codes_outside_the_grid_are_refused_on_the_way_in() -> None:
    q = random_quantized("q", Format(bits=3, group_size="row"), (2, 10), seed=0)
    q.codes_OI[1, 2] = 4
    with pytest.raises(InputError, match=r"(?s)outside its grid.*0\.\.8.*0\.\.7"):
        file_tensors(q)


@pytest.mark.parametrize("part", ["weight_packed", "weight_zero_point"])
def test_spare_bits_that_are_set_are_refused_on_the_way_out(part: str) -> None:
    form = Format(bits=3, group_size="row", symmetry="asymmetric")
    tensors = file_tensors(random_quantized("q", form, (5, 11), seed=0))
    tensors[f"q.{part}"][-1, -1] |= 1 << 30
    with pytest.raises(InputError, match="spare bits set"):
        from_file_tensors("q", form, tensors)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("weight_packed", lambda t: t[:, :-1], "wrong form"),
        ("weight_packed", lambda t: t[:-1], "wrong form"),
        ("weight_packed", lambda t: t.to(torch.int64), "wrong form"),
        ("weight_scale", lambda t: t[:, :-1], "wrong shape"),
        ("weight_shape", lambda t: t + torch.tensor([0, 64]), "wrong shape"),
        ("weight_shape", lambda t: t - torch.tensor([1, 0]), "wrong shape"),
        ("weight_shape", lambda t: t - torch.tensor([0, 1]), "does not fit"),
    ],
)
def test_tensors_of_another_form_are_refused_on_the_way_out(part: str, change: object, message: str) -> None:
    form = Format(bits=5, group_size=64)
    tensors = file_tensors(random_quantized("q", form, (4, 128), seed=0))
    tensors[f"q.{part}"] = change(tensors[f"q.{part}"])  # type: ignore[operator]
    with pytest.raises(InputError, match=message):
        from_file_tensors("q", form, tensors)
