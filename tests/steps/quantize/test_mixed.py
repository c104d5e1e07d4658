"""Several widths in one matrix: layouts, bytes, and what they are worth."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import tiny_value
from selections import fmt, units_of

from schemas.artifact import Unit
from schemas.errors import InputError
from schemas.format import Mixed, PerColumn
from schemas.quantize import ClipSearch, Feedback, MinMax, Nearest, QuantizeUnit, Rounding
from steps.ops.bitpack import pack_rows
from steps.ops.bitstream import pack_stream, pack_widths, unpack_stream, unpack_widths
from steps.ops.proxy import proxy_loss
from steps.pack import container
from steps.pack.compressed_tensors import encode as compressed_tensors
from steps.pack.sizes import linear_bytes
from steps.quantize import unit as quantize
from steps.quantize.mixed import layout
from steps.quantize.mixed.quantize import quantize_mixed
from steps.quantize.qtensor import from_value
from steps.quantize.tensors.mixed import MixedTensor
from steps.step import Env, Output

GPTQ = Rounding(fit=ClipSearch(kind="clip"), solver=Feedback(kind="feedback"))
RTN = Rounding(fit=MinMax(kind="minmax"), solver=Nearest(kind="rtn"))


def layer(rows: int = 48, columns: int = 256, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """W_OI and H_II of inputs that are correlated and whose energies differ by two orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    energy_I = torch.logspace(-1, 1, columns)[torch.randperm(columns, generator=generator)].sqrt()
    mix_II = torch.eye(columns) + 0.3 * torch.randn(columns, columns, generator=generator) / columns**0.5
    x_TI = torch.randn(4 * columns, columns, generator=generator) @ mix_II * energy_I
    W_OI = torch.randn(rows, columns, generator=generator) * (0.5 + torch.rand(columns, generator=generator))
    return W_OI, 2 * x_TI.T @ x_TI / len(x_TI)


def mixed(name: str, rounding: Rounding = GPTQ, seed: int = 0) -> tuple[MixedTensor, float]:
    """The layer in this format, and its loss."""
    form = fmt(name)
    assert isinstance(form, Mixed | PerColumn)
    q, solved = quantize_mixed(form, rounding, *layer(seed=seed), torch.bfloat16, Env())
    return q, solved.loss_O.sum().item()


def uniform(name: str, rounding: Rounding = GPTQ, seed: int = 0) -> tuple[Output, float]:
    """The layer as a candidate in a uniform format, by the quantize step."""
    W_OI, H_II = layer(seed=seed)
    about = Unit(name="u", block=0, members=("m",), shapes=((len(W_OI), len(H_II)),), statistics=("g",))
    model = Output({"unit": about.model_dump(mode="json"), "config": {}}, {"m.weight": W_OI})
    inputs = {"model": model, "statistics": Output(tensors={"g.hessian": H_II})}
    item = quantize.run(QuantizeUnit(format=fmt(name), rounding=rounding), inputs, Env())["candidates"]
    return item, item.meta["members"]["m"]["loss"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 8), min_size=1, max_size=40), st.integers(1, 600), st.integers(0, 99))
def test_a_stream_comes_back_whatever_its_widths(widths: list[int], rows: int, seed: int) -> None:
    bits_I, size = torch.tensor(widths, dtype=torch.uint8), -(-sum(widths) // 8) + 1
    half_I = 2.0 ** (bits_I.float() - 1)
    noise_OI = torch.rand(rows, len(widths), generator=torch.Generator().manual_seed(seed))
    codes_OI = (noise_OI * 2 * half_I).floor().sub(half_I).to(torch.int8)
    packed_OB = pack_stream(codes_OI, bits_I, size)
    assert packed_OB.shape == (rows, size)
    assert torch.equal(unpack_stream(packed_OB, bits_I), codes_OI)
    assert torch.equal(unpack_widths(pack_widths(bits_I), len(bits_I)), bits_I)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_a_stream_of_one_width_has_the_bytes_of_plain_packing(bits: int) -> None:
    codes_OI = torch.arange(-700, 700).remainder(1 << bits).sub(1 << (bits - 1)).to(torch.int8).view(20, 70)
    widths_I = torch.full((70,), bits, dtype=torch.uint8)
    assert torch.equal(pack_stream(codes_OI, widths_I, -(-70 * bits // 8)), pack_rows(codes_OI, bits))


@pytest.mark.parametrize("rounding", [GPTQ, RTN], ids=["gptq", "rtn"])
@pytest.mark.parametrize(("name", "same"), [("int2+4-g64@2", "int2-g64"), ("int2+4-g64@4", "int4-g64")])
def test_none_or_all_groups_high_is_the_uniform_format_bit_for_bit(name: str, same: str, rounding: Rounding) -> None:
    (q, loss), (item, expected) = mixed(name, rounding), uniform(same, rounding)
    stored = q.to_tensors()
    assert torch.equal(stored[".codes"], item.tensors["m.codes"])
    assert torch.equal(stored[".scale"], item.tensors["m.scale"])
    assert torch.equal(q.dequantize(), from_value(item, "m").dequantize())
    assert loss == pytest.approx(expected, rel=1e-9)


def test_columns_of_one_width_are_the_uniform_format_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "steps.quantize.mixed.quantize.fill", lambda loss_IC, widths, budget: torch.full((256,), 3, dtype=torch.uint8)
    )
    (q, loss), (item, expected) = mixed("baq3-g128"), uniform("int3-g128")
    assert torch.equal(q.to_tensors()[".codes"], item.tensors["m.codes"])
    assert torch.equal(q.dequantize(), from_value(item, "m").dequantize())
    assert loss == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("rounding", [GPTQ, RTN], ids=["gptq", "rtn"])
@pytest.mark.parametrize("name", ["int2+4-g32@2.5", "int3+8-g64@4.25", "baq2.5-g64", "baq2.25-row", "baq5.5-g128"])
def test_the_loss_is_that_of_the_weights_and_bytes_are_as_foretold(name: str, rounding: Rounding) -> None:
    (q, loss), (W_OI, H_II) = mixed(name, rounding), layer()
    direct = proxy_loss(q.dequantize().double() - W_OI.double(), H_II.double()).sum().item()
    assert loss == pytest.approx(direct, rel=1e-4)
    tensors = container.encode(q)
    assert q.nbytes() == sum(t.numel() * t.element_size() for t in tensors.values())
    assert q.nbytes() == linear_bytes("bitsmith", q.format, q.shape)
    back = container.check("", q.format, q.shape, tensors)
    assert isinstance(back, MixedTensor) and torch.equal(back.codes_OI, q.codes_OI)
    assert torch.equal(back.bits_K, q.bits_K) and torch.equal(back.dequantize(), q.dequantize())
    width_I = q.bits_K.repeat_interleave(256 // len(q.bits_K)).long()
    mean = width_I.double().mean().item()
    assert mean == q.format.mean_bits
    assert torch.all(q.codes_OI >= -(1 << width_I) // 2) and torch.all(
        q.codes_OI <= ((1 << width_I) // 2 - 1).clamp(min=0)
    )
    part = q.rows("part", 5, 9)
    assert torch.equal(part.dequantize(), q.dequantize()[5:9]) and part.name == "part"


@pytest.mark.parametrize("seed", range(2))
def test_groups_chosen_by_sensitivity_beat_random_ones_and_other_sensitivities(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"conditional": mixed("int2+4-g32@2.5", seed=seed)[1]}
    weights, (_, H_II) = layout.input_weights, layer(seed=seed)
    for name, weight_I in {"hessian": H_II.diagonal().double(), "range": torch.ones(256, dtype=torch.float64)}.items():
        monkeypatch.setattr("steps.quantize.mixed.quantize.input_weights", lambda *given, w=weight_I: w)
        found[name] = mixed("int2+4-g32@2.5", seed=seed)[1]
    monkeypatch.setattr("steps.quantize.mixed.quantize.input_weights", weights)
    random = []
    for draw in range(6):
        chosen_G = torch.randperm(8, generator=torch.Generator().manual_seed(draw)) < 2
        monkeypatch.setattr("steps.quantize.mixed.quantize.sensitive_groups", lambda w, s, n, chosen=chosen_G: chosen)
        random.append(mixed("int2+4-g32@2.5", seed=seed)[1])
    assert found["conditional"] < sum(random) / len(random)
    assert found["conditional"] <= found["range"]
    assert uniform("int4-g32", seed=seed)[1] < found["conditional"] < uniform("int2-g32", seed=seed)[1]


def test_more_high_groups_never_cost_more() -> None:
    losses = [mixed(f"int2+4-g32@{mean}")[1] for mean in (2, 2.25, 2.5, 3, 3.5, 4)]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize(
    ("name", "same"), [("baq4-row", "int4-row"), ("baq3-row", "int3-row"), ("baq3-g128", "int3-g128")]
)
def test_bits_per_column_beat_one_width_at_the_same_codes(name: str, same: str) -> None:
    """Columns that differ by two orders of magnitude are BAQ's own case; its paper has no groups."""
    assert mixed(name)[1] < 0.8 * uniform(same)[1]


def test_weights_are_conditional_on_what_is_rounded_later() -> None:
    _, H_II = layer()
    spec = Feedback(kind="feedback", damping=0.01)
    found_I = layout.input_weights(spec, H_II, torch.float32, Env())
    damped_II = H_II.double() + 0.01 * H_II.double().diagonal().mean() * torch.eye(256, dtype=torch.float64)
    order = H_II.diagonal().argsort(descending=True, stable=True).tolist()
    for k in range(0, 256, 15):
        rest = torch.tensor(order[k:])
        conditional = 1 / torch.linalg.inv(damped_II[rest][:, rest])[0, 0]
        assert found_I[order[k]].item() == pytest.approx(conditional.item(), rel=1e-6)
    assert torch.equal(layout.input_weights(Nearest(kind="rtn"), H_II, torch.float32, Env()), H_II.diagonal().double())


@given(st.integers(0, 999), st.integers(10, 20))
@settings(max_examples=40, deadline=None)
def test_filling_is_optimal_where_every_step_is_one_bit(seed: int, budget: int) -> None:
    """Brute force over 3^5 layouts; losses are convex in the bits, so that greedy steps are exact."""
    cost_I = torch.rand(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.01
    widths = (2, 3, 4)
    loss_IC = torch.stack([cost_I * 4.0**-w for w in widths], dim=1)
    bits_I = layout.fill(loss_IC, widths, budget)
    assert int(bits_I.sum()) == budget
    found = sum(loss_IC[i, widths.index(int(b))].item() for i, b in enumerate(bits_I))
    choices = [c for c in product(range(3), repeat=5) if sum(widths[w] for w in c) <= budget]
    best = min(sum(loss_IC[i, w].item() for i, w in enumerate(c)) for c in choices)
    assert found == pytest.approx(best, rel=1e-12)


def test_equal_columns_get_equal_bits_and_useless_ones_least() -> None:
    sensitivity_I = layout.input_sensitivity(torch.ones(64), torch.full((3, 2), 0.1))
    assert sensitivity_I.tolist() == pytest.approx([0.03] * 64)
    assert set(layout.fill(layout.column_losses(sensitivity_I, (2, 3, 4)), (2, 3, 4), 3 * 64).tolist()) == {3}
    sensitivity_I[:32] = 0
    loss_IC = layout.column_losses(sensitivity_I, (2, 3, 4))
    assert layout.fill(loss_IC, (2, 3, 4), 3 * 64).tolist() == [2] * 32 + [4] * 32


@pytest.mark.parametrize("name", ["int2+4-g32@3", "baq3-g32"])
def test_a_fused_unit_has_one_layout_and_comes_back(name: str) -> None:
    model = tiny_value()
    unit = units_of(model)[0]
    part = Output(meta={**model.meta, "unit": unit.model_dump(mode="json")}, tensors=model.tensors)
    H_II = layer(columns=32)[1]
    statistics = Output(tensors={f"{unit.statistics[0]}.hessian": H_II})
    item = quantize.run(QuantizeUnit(format=fmt(name), rounding=GPTQ), {"model": part, "statistics": statistics}, Env())
    widths = [item["candidates"].tensors[f"{m}.widths"] for m in unit.members]
    assert all(torch.equal(w, widths[0]) for w in widths)
    for member, facts in item["candidates"].meta["members"].items():
        D_OI = from_value(item["candidates"], member).dequantize() - model.tensors[f"{member}.weight"]
        assert facts["loss"] == pytest.approx(proxy_loss(D_OI, H_II).sum().item(), rel=1e-3)


def test_impossible_widths_and_other_file_formats_are_refused() -> None:
    q, _ = mixed("int2+4-g32@2.5")
    tensors = q.to_tensors()
    for widths, got in (([2, 4, 4, 4, 2, 2, 2, 2], "704 bits a row"), ([2, 3, 4, 2, 2, 2, 2, 2], "widths 3")):
        broken = tensors | {".widths": pack_widths(torch.tensor(widths))}
        with pytest.raises(InputError, match=got):
            container.check("", q.format, q.shape, broken)
    with pytest.raises(InputError, match=r"compressed-tensors(.|\n)*int2\+4-g32@2\.5(.|\n)*affine"):
        compressed_tensors(q)
    with pytest.raises(ValueError, match=r"steps of 0\.25"):
        fmt("int2+4-g64@2.6")
    with pytest.raises(ValueError, match="low < high"):
        fmt("int4+2-g64@3")
    with pytest.raises(ValueError, match="did you mean"):
        fmt("int2+4-g64")
