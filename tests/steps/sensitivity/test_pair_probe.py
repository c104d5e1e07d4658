"""Two units at once, against transformers' own model with both swapped."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from models import tiny_tokens, tiny_value
from selections import candidates_of, modified_transformer, units_of

from schemas.calibrate import Reference
from schemas.errors import InputError
from schemas.format import read_format
from schemas.sensitivity import PairProbe
from steps.calibrate import reference
from steps.sensitivity import pair_probe
from steps.step import Env, Output
from steps.verify.metrics import compare_chunk

MODEL, TOKENS = tiny_value(), tiny_tokens(6, 16)
CANDIDATES = candidates_of(MODEL, "int2-g32", "int3-g32")
INPUTS = {
    "model": MODEL,
    "tokens": TOKENS,
    "candidates": CANDIDATES,
    "reference": reference.run(Reference(step="reference"), {"model": MODEL, "tokens": TOKENS}, Env())["reference"],
}


def direct(*items: str) -> float:
    """KL with these candidates in place."""
    ids, predicted = TOKENS.tensors["ids_NS"].long(), torch.arange(15) < TOKENS.tensors["lengths_N"][:, None] - 1
    with torch.no_grad():
        children = {name.rpartition("/")[0]: CANDIDATES.children[name] for name in items}
        first, second = (modified_transformer(MODEL, Output(children=c))(input_ids=ids).logits for c in ({}, children))
    pair = first[:, :-1][predicted], second[:, :-1][predicted]
    return compare_chunk(*pair, ids[:, 1:][predicted]).kl_P.double().mean().item()


def run(spec: PairProbe, inputs: dict[str, Output]) -> Output:
    return pair_probe.run(spec, inputs, Env())["interactions"]


def test_pairs_within_and_across_blocks_equal_full_forwards() -> None:
    found = run(PairProbe(step="pair_probe", formats=(read_format("int3-g32"),)), INPUTS).meta
    names = [u.name for u in units_of(MODEL)]
    assert [(p["first"], p["second"]) for p in found["pairs"]] == list(pairwise(names))
    for pair in (found["pairs"][0], found["pairs"][3]):
        first, second = f"{pair['first']}/int3-g32", f"{pair['second']}/int3-g32"
        assert pair["kl_first"] == pytest.approx(direct(first), rel=1e-3)
        assert pair["kl_second"] == pytest.approx(direct(second), rel=1e-3)
        assert pair["kl_both"] == pytest.approx(direct(first, second), rel=1e-3)
    for pair in found["pairs"]:
        gap = pair["kl_both"] - pair["kl_first"] - pair["kl_second"]
        assert pair["interaction"] == pytest.approx(gap, abs=1e-12)
        assert pair["low"] <= pair["interaction"] <= pair["high"]
        product = pair["correlation"] * 2 * (pair["kl_first"] * pair["kl_second"]) ** 0.5
        assert product == pytest.approx(pair["interaction"], abs=1e-12)
    total = found["additivity"]
    assert total["ratio"] == pytest.approx(total["together"] / total["apart"])


def test_a_plan_says_the_formats_and_span_says_how_far() -> None:
    names = [u.name for u in units_of(MODEL)]
    plan = Output({"plan": {name: f"int{2 + i % 2}-g32" for i, name in enumerate(names)}})
    found = run(PairProbe(step="pair_probe", span=2), {**INPUTS, "plan": plan}).meta["pairs"]
    assert len(found) == 11 + 10
    assert found[0]["formats"] == ["int2-g32", "int3-g32"] and found[1]["formats"] == ["int2-g32", "int2-g32"]
    second = f"{names[1]}/int3-g32"
    assert found[0]["kl_both"] == pytest.approx(direct(f"{names[0]}/int2-g32", second), rel=1e-3)


def test_every_format_offered_is_probed_when_none_is_named() -> None:
    few = {n: c for n, c in CANDIDATES.children.items() if n.startswith(("layers.0.self_attn", "layers.2.mlp.down"))}
    found = run(PairProbe(step="pair_probe"), {**INPUTS, "candidates": Output(children=few)}).meta["pairs"]
    assert [p["formats"][0] for p in found] == ["int2-g32", "int3-g32"] * 2


def test_plans_that_do_not_fit_and_lonely_units_are_refused() -> None:
    plan = Output({"plan": {u.name: "int8-g32" for u in units_of(MODEL)}})
    with pytest.raises(InputError, match=r"does not fit the candidates\n.*layers\.0\.self_attn\.qkv\n.*int8-g32"):
        run(PairProbe(step="pair_probe"), {**INPUTS, "plan": plan})
    one = {n: c for n, c in CANDIDATES.children.items() if n.startswith("layers.1.mlp.down")}
    with pytest.raises(InputError, match="no pair of neighbouring units"):
        run(PairProbe(step="pair_probe"), {**INPUTS, "candidates": Output(children=one)})
