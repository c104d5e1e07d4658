"""Metrics that read what candidates record: against direct computation, and what they refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models import block_view, tiny_tokens, tiny_value
from recorded import recorded_candidates
from selections import fmt, modified_transformer, units_of

from schemas.calibrate import Calibrate
from schemas.errors import InputError
from schemas.quantize import QuantizeUnit, Rounding
from schemas.sensitivity import LIM, ZD, OutputError, SizeNormalised, WeightError
from steps.calibrate import statistics
from steps.model.overlay import dequantized
from steps.quantize import unit as quantize
from steps.sensitivity import lim, output_error, size_normalised, weight_error, zd
from steps.step import Env, Output


def quantized(model: Output, tokens: Output, block: int, unit_name: str) -> Output:
    """One real candidate, through calibration and the feedback solver."""
    carried: dict[str, Output] = {}
    for k in range(block + 1):
        inputs = {"model": block_view(model, k), "tokens": tokens, **carried}
        found = statistics.run(Calibrate(step="calibrate"), inputs, Env())
        carried = {"hidden": found["hidden"]}
    (unit,) = (u for u in units_of(model) if u.name == unit_name)
    part = Output(meta={**model.meta, "unit": unit.model_dump(mode="json")}, tensors=model.tensors)
    spec = QuantizeUnit(format=fmt("int3-g32"), rounding=Rounding())
    return quantize.run(spec, {"model": part, "statistics": found["statistics"]}, Env())["candidates"]


def test_output_error_is_the_mean_squared_error_of_the_outputs() -> None:
    """Through calibration, solver and record, against the linears of transformers' own model on the same tokens."""
    model, tokens = tiny_value(), tiny_tokens(8, 16, ragged=False)
    item = quantized(model, tokens, 1, "layers.1.mlp.gate_up")
    name = "layers.1.mlp.gate_up/int3-g32"
    score = output_error.run(OutputError(step="output_error"), {"candidates": Output(children={name: item})}, Env())
    transformer, total = modified_transformer(model, Output()), 0.0
    inputs: dict[str, torch.Tensor] = {}
    for member in item.meta["members"]:
        linear = transformer.get_submodule(member)
        linear.register_forward_hook(lambda m, x, z, member=member: inputs.__setitem__(member, x[0]))  # type: ignore[misc]
    with torch.no_grad():
        transformer(input_ids=tokens.tensors["ids_NS"].long())
        for member, x_NSI in inputs.items():
            delta_OI = dequantized(item, member) - model.tensors[f"{member}.weight"]
            total += (x_NSI @ delta_OI.T).square().sum(-1).mean().item()
    assert score["scores"].children[name].meta["score"] == pytest.approx(total, rel=1e-3)
    rows = [item.tensors[f"{member}.row_loss"].double().sum().item() for member in item.meta["members"]]
    assert sum(rows) == pytest.approx(total, rel=1e-3)


def test_size_normalised_is_the_error_of_one_output_over_a_power_of_the_size() -> None:
    candidates = recorded_candidates(tiny_value(), "int3-g32")
    inputs = {"candidates": candidates}
    plain = output_error.run(OutputError(step="output_error"), inputs, Env())["scores"].children
    found = size_normalised.run(SizeNormalised(step="size_normalised"), inputs, Env())["scores"].children
    for name, outputs, weights in (("self_attn.qkv", 32 + 16 + 16, 64 * 32), ("mlp.down", 32, 32 * 64)):
        item = f"layers.0.{name}/int3-g32"
        expected = plain[item].meta["score"] / outputs / weights**0.3
        assert found[item].meta["score"] == pytest.approx(expected, rel=1e-12)


def test_weight_error_is_the_squared_norm_of_what_changed() -> None:
    model = tiny_value(dtype=torch.bfloat16)
    candidates = recorded_candidates(model, "int2-g32", "int4-g32")
    inputs = {"model": model, "candidates": candidates}
    found = weight_error.run(WeightError(step="weight_error"), inputs, Env())["scores"].children
    for name, item in candidates.children.items():
        deltas = [dequantized(item, m) - model.tensors[f"{m}.weight"].float() for m in item.meta["members"]]
        expected = sum(d.double().square().sum().item() for d in deltas)
        assert found[name].meta["score"] == pytest.approx(expected, rel=1e-9)


def test_lim_is_one_minus_the_cosine_of_what_a_block_is_given_and_gives() -> None:
    model, tokens = tiny_value(), tiny_tokens(6, 16)
    candidates = recorded_candidates(model, "int3-g32")
    inputs = {"model": model, "tokens": tokens, "candidates": candidates}
    found = lim.run(LIM(step="lim", batch=4), inputs, Env())["scores"].children
    with torch.no_grad():
        states = modified_transformer(model, Output())(
            input_ids=tokens.tensors["ids_NS"].long(), output_hidden_states=True
        ).hidden_states
    predicted_NS = torch.arange(16) < tokens.tensors["lengths_N"][:, None] - 1
    for block in range(2):  # transformers gives the last block's output after the final norm
        cosine = torch.cosine_similarity(states[block], states[block + 1], dim=-1)[predicted_NS].mean().item()
        name = f"layers.{block}.mlp.down/int3-g32"
        (facts,) = candidates.children[name].meta["members"].values()
        assert found[name].meta["score"] == pytest.approx((1 - cosine) * facts["relative_error"] ** 2, rel=1e-4)
        assert sum(found[name].meta["weights"]) == int(predicted_NS.sum())


def test_a_block_that_does_nothing_is_refused_by_lim_with_the_units_name() -> None:
    model = tiny_value()
    silent = {f"model.layers.1.{name}.weight" for name in ("self_attn.o_proj", "mlp.down_proj")}
    tensors = {name: torch.zeros_like(t) if name in silent else t for name, t in model.tensors.items()}
    idle = replace(model, tensors=tensors)
    every = recorded_candidates(model, "int3-g32").children
    candidates = Output(children={n: c for n, c in every.items() if n.startswith("layers.1.self_attn.qkv")})
    inputs = {"model": idle, "tokens": tiny_tokens(), "candidates": candidates}
    with pytest.raises(InputError, match=r"zero at every token.*\n.*layers\.1\.self_attn\.qkv"):
        lim.run(LIM(step="lim"), inputs, Env())


def test_zd_counts_what_stands_out_and_does_not_see_scale() -> None:
    model = tiny_value()
    pooled = torch.cat([model.tensors[f"{m}.weight"].flatten() for u in units_of(model)[:4] for m in u.members])
    bound = pooled.double().mean() + pooled.double().std(correction=0)
    share = (pooled.double() > bound).double().mean().item()
    assert zd.shares(model, 1.0)[0] == pytest.approx(share, rel=1e-12)
    scaled = {n: t * 4 if t.ndim == 2 else t for n, t in model.tensors.items()}
    assert zd.shares(replace(model, tensors=scaled), 1.0) == zd.shares(model, 1.0)
    candidates = recorded_candidates(model, "int3-g32")
    found = zd.run(ZD(step="zd"), {"model": model, "candidates": candidates}, Env())["scores"].children
    name = "layers.0.mlp.down/int3-g32"
    (facts,) = candidates.children[name].meta["members"].values()
    assert found[name].meta["score"] == pytest.approx(facts["relative_error"] ** 2 / share, rel=1e-6)


def test_zd_of_constant_weights_is_refused_with_the_units_name() -> None:
    model = tiny_value()
    tensors = {n: torch.ones_like(t) if "layers.2" in n else t for n, t in model.tensors.items()}
    inputs = {"model": replace(model, tensors=tensors), "candidates": recorded_candidates(model, "int3-g32")}
    with pytest.raises(InputError, match=r"ZD says nothing(.*\n)*.*layers\.2\.self_attn\.qkv"):
        zd.run(ZD(step="zd"), inputs, Env())


@pytest.mark.parametrize(("fact", "value"), [("loss", float("nan")), ("loss", float("inf")), ("loss", 0.0)])
def test_meaningless_records_are_refused_with_the_units_name(fact: str, value: float) -> None:
    candidates = recorded_candidates(tiny_value(), "int3-g32")
    name, member = "layers.1.mlp.down/int3-g32", "model.layers.1.mlp.down_proj"
    item = candidates.children[name]
    facts = {member: {**item.meta["members"][member], fact: value}}
    broken = Output(children={**candidates.children, name: Output({**item.meta, "members": facts}, item.tensors)})
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.down in int3-g32"):
        output_error.run(OutputError(step="output_error"), {"candidates": broken}, Env())


def test_candidates_without_a_record_are_refused_with_what_is_missing() -> None:
    candidates = recorded_candidates(tiny_value(), "int3-g32")
    name = "layers.0.self_attn.o/int3-g32"
    item = candidates.children[name]
    members = {m: {k: v for k, v in f.items() if k != "relative_error"} for m, f in item.meta["members"].items()}
    broken = Output(children={name: Output({**item.meta, "members": members}, item.tensors)})
    with pytest.raises(InputError, match=r"does not record its relative_error\n.*o_proj of layers\.0\.self_attn\.o"):
        weight_error.run(WeightError(step="weight_error"), {"model": tiny_value(), "candidates": broken}, Env())
