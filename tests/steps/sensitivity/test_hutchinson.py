"""Hutchinson's trace against the explicit Hessian of the KL, on a model small enough to have one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import tiny_tokens, tiny_value
from recorded import recorded_candidates
from selections import modified_transformer, units_of

from schemas.errors import InputError
from schemas.sensitivity import Hutchinson
from steps.sensitivity import hutchinson
from steps.step import Env, Output

MEMBER = "model.layers.0.self_attn.o_proj"


def small() -> Output:
    """One block whose o_proj has 16 x 8 weights."""
    return tiny_value(num_hidden_layers=1, hidden_size=16, intermediate_size=32, num_attention_heads=2, head_dim=4)


def hessian(model: Output, tokens: Output) -> torch.Tensor:
    """Of the KL per predicted position by the weights of MEMBER, by torch.func on transformers' own model."""
    transformer = modified_transformer(model, Output()).double()
    transformer.config._attn_implementation = "eager"
    predicted_NS = torch.arange(tokens.tensors["ids_NS"].shape[1]) < tokens.tensors["lengths_N"][:, None] - 1
    ids_NS, weight = tokens.tensors["ids_NS"].long(), transformer.get_parameter(f"{MEMBER}.weight").detach()

    def log_q(weight_OI: torch.Tensor) -> torch.Tensor:
        arguments: dict[str, Any] = {"input_ids": ids_NS, "use_cache": False}
        called = torch.func.functional_call(transformer, {f"{MEMBER}.weight": weight_OI}, (), arguments)
        logits_NSV: torch.Tensor = called.logits
        return logits_NSV[predicted_NS].log_softmax(-1)

    log_p = log_q(weight).detach()
    found: Any = torch.autograd.functional.hessian(lambda w: (log_p.exp() * (log_p - log_q(w))).sum(-1).mean(), weight)
    return found.reshape(weight.numel(), weight.numel())  # type: ignore[no-any-return]


def hadamard(order: int) -> torch.Tensor:
    """Rows are orthogonal sign vectors, so that their mean v^T H v is the trace exactly."""
    rows = torch.ones(1, 1)
    while len(rows) < order:
        rows = torch.cat([torch.cat([rows, rows], 1), torch.cat([rows, -rows], 1)])
    return rows


def test_orthogonal_signs_give_the_trace_of_the_explicit_hessian(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = small(), tiny_tokens(3, 8)
    rows = iter(hadamard(128))

    def signs(leaves: hutchinson.Leaves, generator: torch.Generator) -> list[torch.Tensor]:
        """Only MEMBER moves, so that nothing couples it to other units."""
        flat = [(name, leaf) for held in leaves.values() for name, leaf in held.items()]
        return [next(rows).view(16, 8) if MEMBER.endswith(n[:-7]) else torch.zeros(leaf.shape) for n, leaf in flat]

    monkeypatch.setattr(hutchinson, "random_signs", signs)
    spec = Hutchinson(step="hutchinson", samples=128, batch=3)
    found = hutchinson.traces(spec, model, units_of(model), tokens, Env())
    expected = hessian(model, tokens).trace().item()
    assert found["layers.0.self_attn.o"] == pytest.approx(expected, rel=1e-3)
    assert found["layers.0.mlp.down"] == 0


@pytest.mark.slow
def test_random_signs_estimate_it_within_their_own_spread() -> None:
    """Five deviations: variance of v^T H v over random signs is 2 sum of squares off the diagonal, and about as much
    again from the other units that move at once."""
    model, tokens = small(), tiny_tokens(3, 8)
    H = hessian(model, tokens)
    spec = Hutchinson(step="hutchinson", samples=64, batch=2)
    found = hutchinson.traces(spec, model, units_of(model), tokens, Env())["layers.0.self_attn.o"]
    deviation = (4 * (H.square().sum() - H.diagonal().square().sum()) / 64).sqrt().item()
    assert abs(found - H.trace().item()) < 5 * deviation


def test_scores_are_half_the_mean_eigenvalue_times_the_squared_error() -> None:
    model, tokens = small(), tiny_tokens(3, 8)
    candidates = recorded_candidates(model, "int4-row", "int2-row")
    spec = Hutchinson(step="hutchinson", seed=3)
    inputs = {"model": model, "candidates": candidates, "tokens": tokens}
    found = hutchinson.run(spec, inputs, Env())["scores"]
    trace = hutchinson.traces(spec, model, units_of(model), tokens, Env())["layers.0.self_attn.o"]
    for name in ("layers.0.self_attn.o/int4-row", "layers.0.self_attn.o/int2-row"):
        (facts,) = candidates.children[name].meta["members"].values()
        size = model.tensors[f"{MEMBER}.weight"].double().square().sum().item()
        expected = trace / 128 * facts["relative_error"] ** 2 * size / 2
        assert found.children[name].meta["score"] == pytest.approx(expected, rel=1e-9)
    assert found == hutchinson.run(spec, inputs, Env())["scores"]
    assert found != hutchinson.run(Hutchinson(step="hutchinson", seed=4), inputs, Env())["scores"]


def test_a_unit_that_nothing_reads_is_refused_by_name() -> None:
    model, tokens = small(), tiny_tokens(3, 8)
    tensors = {**model.tensors, "model.layers.0.mlp.down_proj.weight": torch.zeros(16, 32)}
    name = "layers.0.mlp.gate_up/int4-row"
    only = Output(children={name: recorded_candidates(model, "int4-row").children[name]})
    inputs = {"model": Output(model.meta, tensors), "candidates": only}
    with pytest.raises(InputError, match=r"zero although the weights changed\n.*layers\.0\.mlp\.gate_up"):
        hutchinson.run(Hutchinson(step="hutchinson"), inputs | {"tokens": tokens}, Env())
