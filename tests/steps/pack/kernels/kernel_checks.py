"""What test_kernels.py runs in a process of its own; on its own: TRITON_INTERPRET=1 pytest THIS FILE (0 on a GPU)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from kernel_cases import packed_case, relative_error
from models import tiny_value
from packables import on_disk, random_quantized, random_selection
from selections import fmt
from torch.nn import functional as F

from schemas.pack import Pack
from steps.pack import run as pack
from steps.pack.kernels.choose import product, serves
from steps.pack.kernels.dense import dense
from steps.pack.kernels.matmul import matmul
from steps.pack.kernels.matvec import matvec
from steps.pack.kernels.packed import BITS, Packed
from steps.pack.modules import PackedLinear
from steps.step import Env
from steps.verify.bandwidth import sweep
from steps.verify.load_packed import load

DEVICE = "cpu" if os.environ["TRITON_INTERPRET"] == "1" else "cuda"
HALF_ERROR = 2e-3
CASES = [((19, 96), 32, True), ((33, 256), 64, False), ((5, 1280), 1280, True), ((9, 640), 128, False)]
"""Rows that no block divides, runs that fill no warp and more than a block, every group size, a scale per row."""


def token(inputs: int, dtype: torch.dtype, tokens: int = 1) -> torch.Tensor:
    return torch.randn(tokens, inputs, generator=torch.Generator().manual_seed(1)).to(DEVICE, dtype)


def integers(bits: int, shape: tuple[int, int], signed: bool) -> tuple[torch.Tensor, Packed]:
    """A matrix of integers: its products with small integers are exact in fp32, whatever their order."""
    exact_OI, packed = packed_case(bits, shape, 32, signed, device=DEVICE)
    level_OI = exact_OI / packed.scale_OG.float().repeat_interleave(32, 1)
    packed.scale_OG.fill_(1)
    return level_OI.round(), packed


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "asymmetric"])
@pytest.mark.parametrize("bits", BITS)
def test_whole_numbers_come_out_exactly(bits: int, signed: bool) -> None:
    """Oracle: the same sums in fp64."""
    level_OI, packed = integers(bits, (11, 160), signed)
    x_MI = torch.randint(-1, 2, (3, 160), generator=torch.Generator().manual_seed(2)).to(DEVICE, torch.float16)
    exact_MO = x_MI.double() @ level_OI.double().T
    assert torch.equal(matvec(packed, x_MI[0]), exact_MO[0].half())
    assert torch.equal(matmul(packed, x_MI), exact_MO.half())


@pytest.mark.parametrize(("shape", "group", "signed"), CASES)
@pytest.mark.parametrize("bits", BITS)
def test_one_token(bits: int, shape: tuple[int, int], group: int, signed: bool) -> None:
    exact_OI, packed = packed_case(bits, shape, group, signed, torch.float16, DEVICE)
    x_I = token(shape[1], torch.float16)[0]
    assert relative_error(matvec(packed, x_I), exact_OI.double() @ x_I.double()) < HALF_ERROR


@pytest.mark.parametrize("tokens", [2, 17, 40])
@pytest.mark.parametrize("bits", BITS)
def test_a_small_batch(bits: int, tokens: int) -> None:
    for shape, group, signed in CASES[:2]:
        exact_OI, packed = packed_case(bits, shape, group, signed, device=DEVICE)
        x_MI = token(shape[1], torch.float16, tokens)
        assert relative_error(matmul(packed, x_MI), x_MI.double() @ exact_OI.double().T) < HALF_ERROR


@pytest.mark.parametrize(("shape", "group", "signed"), CASES)
@pytest.mark.parametrize("bits", BITS)
def test_a_dense_matrix_is_exact_and_rounded_once(bits: int, shape: tuple[int, int], group: int, signed: bool) -> None:
    exact_OI, packed = packed_case(bits, shape, group, signed, device=DEVICE)
    assert torch.equal(dense(packed, torch.float32), exact_OI)
    assert torch.equal(dense(packed, torch.float16), exact_OI.half())


def test_bf16_differs_by_its_own_rounding() -> None:
    """One unit in the last place of the result: the interpreter cuts where a GPU rounds, and cannot multiply tiles."""
    exact_OI, packed = packed_case(4, (33, 256), 64, False, device=DEVICE)
    x_MI = token(256, torch.bfloat16, 2)
    exact_MO = x_MI.double() @ exact_OI.double().T
    assert relative_error(matvec(packed, x_MI[0]), exact_MO[0]) < 2**-7
    assert relative_error(product(packed, x_MI), exact_MO) < 2**-7


def test_an_input_that_is_a_view_of_another() -> None:
    exact_OI, packed = packed_case(3, (8, 96), 32, True, device=DEVICE)
    wide = token(2 * 96 + 1, torch.float16)[0]
    for x_I in (wide[1:97], wide[: 2 * 96 : 2]):
        assert relative_error(matvec(packed, x_I), exact_OI.double() @ x_I.double()) < HALF_ERROR


def linear(name: str, shape: tuple[int, int], bias: bool = False) -> PackedLinear:
    q = random_quantized("m", fmt(name), shape, 3)
    made = PackedLinear("m", fmt(name), shape, "bfloat16", torch.nn.Parameter(torch.ones(shape[0])) if bias else None)
    made.load_state_dict({key.removeprefix("m."): part for key, part in q.to_tensors().items()}, strict=False)
    return made.to(DEVICE)


@pytest.mark.parametrize("leading", [(1,), (1, 1), (2, 3), (0,), (7, 11), ()])
def test_a_packed_linear_takes_any_positions(leading: tuple[int, ...]) -> None:
    found = linear("int3-g32-asym", (24, 64), bias=True)
    found.bias.data = found.bias.data.half()  # type: ignore[union-attr]
    x_SI = torch.randn(*leading, 64, generator=torch.Generator().manual_seed(4)).to(DEVICE, torch.float16)
    with torch.no_grad():
        y_SO = found(x_SI)
        exact_SO = F.linear(x_SI.double(), found.dense().double()) + 1
    assert y_SO.shape == (*leading, 24) and y_SO.dtype == torch.float16
    assert y_SO.numel() == 0 or relative_error(y_SO, exact_SO) < HALF_ERROR


def test_fp32_gets_the_exact_weights() -> None:
    found, x_SI = linear("int5-g64", (24, 128)), token(128, torch.float32, 3)
    with torch.no_grad():
        assert torch.equal(found(x_SI), F.linear(x_SI, found.dense()))


def test_what_kernels_do_not_serve_is_dequantized() -> None:
    half, trained = token(64, torch.float16), token(64, torch.float16).requires_grad_()
    assert serves(fmt("int2-g32"), (8, 64), half)
    assert not serves(fmt("q8_0"), (8, 64), half) and not serves(fmt("int2+4-g32@3"), (8, 64), half)
    assert not serves(fmt("int3-row"), (8, 36), half)
    assert not serves(fmt("int2-g32"), (8, 64), trained)
    found = linear("q8_0", (8, 64))
    with torch.no_grad():
        assert relative_error(found(half), half.double() @ found.dense().double().T) < HALF_ERROR


def test_a_whole_model_runs_through_the_kernels(tmp_path: Path) -> None:
    """Oracle: the same packed model with its kernels off; token by token and at once."""
    small = tiny_value(hidden_size=64, intermediate_size=128, head_dim=16, dtype=torch.float16)
    model = on_disk(small, tmp_path / "in")
    selection = random_selection(model, [f"int{b}-g32" for b in BITS] + ["int4-row-asym"], dtype=torch.float16)
    (tmp_path / "out").mkdir()
    spec = Pack(step="pack", format="bitsmith")
    pack.run(spec, {"model": model, "selection": selection}, Env(scratch=tmp_path / "out"))
    loaded = load(tmp_path / "out", DEVICE)
    ids_NS = torch.arange(1, 9, device=DEVICE).view(1, 8)
    with torch.no_grad():
        at_once, one = loaded(ids_NS).logits, loaded(ids_NS[:, :1]).logits
        with pytest.MonkeyPatch.context() as off:
            off.setattr("steps.pack.modules.serves", lambda *_: False)
            dense_once, dense_one = loaded(ids_NS).logits, loaded(ids_NS[:, :1]).logits
    assert 0 < relative_error(at_once, dense_once) < 5e-3 and 0 < relative_error(one, dense_one) < 5e-3
    found = sweep(loaded, DEVICE)
    packed = [m for m in loaded.modules() if isinstance(m, PackedLinear)]
    assert found.matrices == len(packed) == 21
    assert found.nbytes == sum(t.nbytes for m in packed for t in m.stored().values())
    found.run()


def test_product_never_builds_a_dense_matrix_for_few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    _, packed = packed_case(4, (8, 64), 32, True, device=DEVICE)
    monkeypatch.setattr("steps.pack.kernels.dense.dense", lambda *_: pytest.fail("made dense"))
    for tokens in (1, 2, 64):
        product(packed, token(64, torch.float16, tokens))
    with pytest.raises(pytest.fail.Exception):
        product(packed, token(64, torch.float16, 65))
