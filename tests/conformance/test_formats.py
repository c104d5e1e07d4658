"""Every format that can be said, through the file format and back, against the library's own packer as oracle."""

from __future__ import annotations

from itertools import product
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packables import random_quantized

from schemas.errors import InputError
from schemas.format import Affine, Bits, Format, Ggml, GgmlType, GroupSize, Symmetry
from schemas.pack import PackFormat
from steps.pack import container
from steps.pack.compressed_tensors import file_tensors, from_file_tensors, pack_words
from steps.pack.engines import refusals
from steps.pack.safetensors_writer import safetensors_dtype
from steps.pack.sizes import linear_bytes, linear_entries
from steps.quantize.qtensor import QuantizedTensor
from steps.quantize.tensors.affine import AffineTensor
from steps.quantize.tensors.ggml import GgmlTensor

FORMATS = [
    Affine(bits=b, group_size=g, symmetry=s)
    for b, g, s in product(get_args(Bits), get_args(GroupSize), get_args(Symmetry))
]
NAMES = [f.name for f in FORMATS]
FOLDERS: tuple[PackFormat, ...] = ("compressed-tensors", "bitsmith")


def shape_of(form: Format) -> tuple[int, int]:
    """Rows are no multiple of 32 codes, except where the group size makes them one."""
    return (7, 3 * 37) if form.group_size == "row" else (7, 3 * form.group_size)


def through(pack: PackFormat, q: AffineTensor) -> tuple[dict[str, torch.Tensor], QuantizedTensor]:
    """What a file format stores of a matrix, and the matrix read back."""
    match pack:
        case "compressed-tensors":
            tensors = file_tensors(q)
            return tensors, from_file_tensors(q.name, q.format, tensors)
        case "bitsmith":
            tensors = container.encode(q)
            return tensors, container.check(q.name, q.format, q.shape, tensors)
        case _:
            raise NotImplementedError(pack)


def same(first: QuantizedTensor, second: QuantizedTensor) -> bool:
    ours, theirs = first.to_tensors(), second.to_tensors()
    return (first.format, first.shape, ours.keys()) == (second.format, second.shape, theirs.keys()) and all(
        t.dtype == theirs[n].dtype and torch.equal(t, theirs[n]) for n, t in ours.items()
    )


@pytest.mark.parametrize("pack", FOLDERS)
@pytest.mark.parametrize("form", FORMATS, ids=NAMES)
def test_a_packed_linear_comes_back_bit_for_bit_and_is_as_large_as_predicted(form: Affine, pack: PackFormat) -> None:
    q = random_quantized("m.q_proj", form, shape_of(form), seed=form.bits)
    tensors, back = through(pack, q)
    assert same(back, q)
    assert linear_bytes(pack, form, q.shape) == sum(t.numel() * t.element_size() for t in tensors.values())
    announced = {e.name: (e.dtype, e.shape) for e in linear_entries(pack, q.name, form, q.shape)}
    assert announced == {n: (safetensors_dtype(t), tuple(t.shape)) for n, t in tensors.items()}


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(FOLDERS),
    st.sampled_from(FORMATS),
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(1, 90),
    st.sampled_from([torch.bfloat16, torch.float16]),
    st.integers(0, 2**31),
)
def test_any_shape_comes_back_bit_for_bit(
    pack: PackFormat, form: Affine, rows: int, groups: int, columns: int, dtype: torch.dtype, seed: int
) -> None:
    shape = (rows, columns if form.group_size == "row" else groups * form.group_size)
    q = random_quantized("m", form, shape, seed, dtype)
    tensors, back = through(pack, q)
    assert same(back, q)
    assert sum(t.numel() * t.element_size() for t in tensors.values()) == linear_bytes(pack, form, shape)


@pytest.mark.parametrize("type_name", get_args(GgmlType))
def test_the_container_holds_tensor_types_of_llama_cpp(type_name: GgmlType) -> None:
    form = Ggml(type=type_name)
    generator = torch.Generator().manual_seed(0)
    blocks_OB = torch.randint(0, 256, (3, 2 * 256 // form.block.weights * form.block.bytes), generator=generator)
    q = GgmlTensor("m", form, blocks_OB.to(torch.uint8))
    tensors = container.encode(q)
    assert same(container.check("m", form, q.shape, tensors), q)
    assert linear_bytes("bitsmith", form, q.shape) == q.nbytes()


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
    reasons = refusals("compressed-tensors", [form], {"dtype": "bfloat16"})
    assert bool(reasons) == (form.symmetry == "asymmetric")
    if reasons:
        other = Affine(bits=form.bits, group_size=form.group_size)
        assert form.name in reasons[0] and other.name in reasons[0]
        assert refusals("compressed-tensors", [other], {"dtype": "bfloat16"}) == []
    assert refusals("bitsmith", [form], {"dtype": "bfloat16"}) == []


@pytest.mark.parametrize(("bits", "code"), [(2, 2), (3, 4), (3, -5), (4, 127), (4, -128), (6, 64), (6, -33)])
def test_codes_outside_the_grid_are_refused_on_the_way_in(bits: Bits, code: int) -> None:
    q = random_quantized("q", Affine(bits=bits, group_size="row"), (2, 10), seed=0)
    q.codes_OI[1, 2] = code
    with pytest.raises(InputError, match="outside its grid"):
        file_tensors(q)
    with pytest.raises(InputError, match=f"(?s)outside its grid.*{code}"):
        container.encode(q)


def test_spare_bits_and_other_forms_are_refused_by_the_container() -> None:
    form = Affine(bits=3, group_size="row")
    tensors = container.encode(random_quantized("q", form, (5, 11), seed=0))
    wrong = {**tensors, "q.codes": tensors["q.codes"].clone()}
    wrong["q.codes"][-1, -1] |= 1 << 7
    with pytest.raises(InputError, match=r"(?s)spare bits set.*q\.codes"):
        container.check("q", form, (5, 11), wrong)
    for change in ({"q.codes": tensors["q.codes"][:, :-1]}, {"q.scale": tensors["q.scale"].float()}):
        with pytest.raises(InputError, match="wrong form"):
            container.check("q", form, (5, 11), {**tensors, **change})
    with pytest.raises(InputError, match=r"(?s)wrong form.*nothing"):
        container.check("q", form, (5, 11), {"q.scale": tensors["q.scale"]})


@pytest.mark.parametrize("part", ["weight_packed", "weight_zero_point"])
def test_spare_bits_that_are_set_are_refused_on_the_way_out(part: str) -> None:
    form = Affine(bits=3, group_size="row", symmetry="asymmetric")
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
    form = Affine(bits=5, group_size=64)
    tensors = file_tensors(random_quantized("q", form, (4, 128), seed=0))
    tensors[f"q.{part}"] = change(tensors[f"q.{part}"])  # type: ignore[operator]
    with pytest.raises(InputError, match=message):
        from_file_tensors("q", form, tensors)
