"""Fisher scores against explicit autograd through transformers' own model, and against the KL probe."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from models import tiny_tokens, tiny_value
from selections import candidates_of, modified_transformer
from torch import nn

from schemas.calibrate import Reference
from schemas.errors import InputError
from schemas.sensitivity import Fisher, KLProbe
from steps.calibrate import reference
from steps.model.overlay import dequantized
from steps.sensitivity import backward, fisher, kl_probe
from steps.step import Env, Output

FORMATS = ("int2-g32", "int3-row-asym", "int4-g32", "int8-g32")


def scores(model: Output, candidates: Output, tokens: Output, **settings: Any) -> Output:
    inputs = {"model": model, "candidates": candidates, "tokens": tokens}
    return fisher.run(Fisher(step="fisher", **settings), inputs, Env())["scores"]


def oracle(model: Output, candidate: Output, tokens: Output, labels: torch.Tensor) -> torch.Tensor:
    """a_NS^2 / 2 by adding epsilon_NS * dW x to the linears' outputs and differentiating by epsilon."""
    transformer, lengths = modified_transformer(model, Output()), tokens.tensors["lengths_N"]
    ids = tokens.tensors["ids_NS"].long()
    epsilon_NS = torch.zeros(ids.shape, requires_grad=True)

    def add(dW_OI: torch.Tensor, module: nn.Module, x: tuple[torch.Tensor, ...], z: torch.Tensor) -> torch.Tensor:
        return z + epsilon_NS[..., None] * (x[0].detach() @ dW_OI.T)

    for member in candidate.meta["members"]:
        linear = transformer.get_submodule(member)
        dW_OI = (dequantized(candidate, member) - linear.weight).detach()
        linear.register_forward_hook(partial(add, dW_OI))
    log_q_NSV = transformer(input_ids=ids).logits.log_softmax(-1)
    predicted_NS = torch.arange(ids.shape[1]) < lengths[:, None] - 1
    total = log_q_NSV[predicted_NS].gather(1, labels[:, None]).sum()
    (a_NS,) = torch.autograd.grad(total, epsilon_NS)
    return (a_NS.square() / 2)[predicted_NS]


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_equals_explicit_autograd_for_given_labels(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = tiny_value(family), tiny_tokens(5, 12)
    labels = torch.arange(int(tokens.tensors["lengths_N"].sum()) - 5) * 7 % 97
    monkeypatch.setattr(backward, "draw_labels", lambda p_PV, samples, generator: labels[:, None])
    candidates = candidates_of(model, "int3-g32")
    found = scores(model, candidates, tokens, batch=5)
    assert list(found.children) == list(candidates.children)
    for name, candidate in candidates.children.items():
        expected = oracle(model, candidate, tokens, labels).double()
        assert found.children[name].meta["score"] == pytest.approx(expected.mean().item(), rel=1e-3)
        assert found.children[name].meta["weights"] == scores_weights(tokens)


def scores_weights(tokens: Output) -> list[int]:
    predicted_N, document_N = tokens.tensors["lengths_N"] - 1, tokens.tensors["document_N"]
    return [int(predicted_N[document_N == d].sum()) for d in range(3)]


@pytest.fixture(scope="module")
def both() -> tuple[Output, dict[str, float]]:
    """Fisher scores with many samples, and the KL probe's, of the same candidates on the same tokens."""
    model, tokens = tiny_value(), tiny_tokens(8, 16, ragged=False)
    candidates = candidates_of(model, *FORMATS)
    env, inputs = Env(), {"model": model, "tokens": tokens}
    inputs |= reference.run(Reference(step="reference"), inputs, env)
    probes = {
        name: kl_probe.run(KLProbe(step="kl_probe"), inputs | {"candidates": child}, env)["scores"].meta["score"]
        for name, child in candidates.children.items()
    }
    return scores(model, candidates, tokens, samples=64), probes


def test_estimates_kl_in_nats_per_token_where_nothing_but_the_second_order_is_dropped(
    both: tuple[Output, dict[str, float]],
) -> None:
    """After the last attention no token sees another, and 8 bits are a small perturbation: the two must agree.

    The tolerance is sampling noise of 120 tokens x 64 samples of a chi-square with one degree of freedom, correlated.
    """
    found, probes = both
    for unit in ("layers.2.mlp.down", "layers.2.mlp.gate_up", "layers.2.self_attn.o"):
        name = f"{unit}/int8-g32"
        assert found.children[name].meta["score"] == pytest.approx(probes[name], rel=0.12)


def test_ranks_candidates_as_the_kl_probe_does(both: tuple[Output, dict[str, float]]) -> None:
    found, probes = both
    ranks = [
        torch.tensor(values).argsort().argsort().double()
        for values in ([found.children[n].meta["score"] for n in probes], list(probes.values()))
    ]
    spearman = torch.corrcoef(torch.stack(ranks))[0, 1].item()
    assert spearman > 0.95


def test_seeds_decide_and_nothing_else_does() -> None:
    model, tokens = tiny_value(tied=True, dtype=torch.bfloat16), tiny_tokens()
    candidates = candidates_of(model, "int4-g32")
    torch.manual_seed(1)
    first = scores(model, candidates, tokens, seed=3, samples=2)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    assert first == scores(model, candidates, tokens, seed=3, samples=2)
    assert torch.equal(state, torch.random.get_rng_state())
    assert first != scores(model, candidates, tokens, seed=4, samples=2)
    assert first != scores(model, candidates, tokens, seed=3, samples=1)


def test_meaningless_scores_and_unknown_units_are_refused_by_name() -> None:
    model, tokens = tiny_value(), tiny_tokens()
    candidates = candidates_of(model, "int4-g32")
    name = "layers.1.mlp.down/int4-g32"
    child, scale = candidates.children[name], "model.layers.1.mlp.down_proj.scale"
    broken = replace(child, tensors={**child.tensors, scale: child.tensors[scale] * float("nan")})
    with pytest.raises(InputError, match=r"not finite\n.*layers\.1\.mlp\.down"):
        scores(model, Output(children={**candidates.children, name: broken}), tokens)
    silent = replace(model, tensors={**model.tensors, "model.layers.0.mlp.down_proj.weight": torch.zeros(32, 64)})
    with pytest.raises(InputError, match=r"zero at every token.*\n.*layers\.0\.mlp\.gate_up"):
        scores(silent, candidates, tokens)
    with pytest.raises(InputError, match=r"layers\.7"):
        scores(model, Output(children={"layers.7.mlp.down/int4-g32": child}), tokens)


def test_a_part_of_the_candidates_is_scored_alike() -> None:
    model, tokens = tiny_value(), tiny_tokens()
    candidates = candidates_of(model, "int3-g32")
    name = "layers.1.self_attn.qkv/int3-g32"
    part = scores(model, Output(children={name: candidates.children[name]}), tokens)
    assert part.children[name] == scores(model, candidates, tokens).children[name]
