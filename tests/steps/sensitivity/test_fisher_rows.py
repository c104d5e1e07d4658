"""The free form of the Fisher metric against explicit autograd, and against the full one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models import tiny_tokens, tiny_value
from recorded import recorded_candidates
from selections import modified_transformer

from schemas.errors import InputError
from schemas.sensitivity import Fisher, FisherRows
from steps.sensitivity import backward, fisher, fisher_rows
from steps.step import Env, Output

SPEC = FisherRows(step="fisher_rows", batch=4)


def scores(model: Output, candidates: Output, tokens: Output, spec: FisherRows = SPEC) -> Output:
    inputs = {"model": model, "candidates": candidates, "tokens": tokens}
    return fisher_rows.run(spec, inputs, Env())["scores"]


def row_squares(model: Output, tokens: Output, labels: torch.Tensor, member: str) -> torch.Tensor:
    """square_PO of the gradient at a linear's output, by transformers' own model and autograd."""
    transformer, kept = modified_transformer(model, Output()), list[torch.Tensor]()
    transformer.get_submodule(member).register_forward_hook(lambda m, x, z: (z.retain_grad(), kept.append(z))[1])
    log_q_NSV = transformer(input_ids=tokens.tensors["ids_NS"].long()).logits.log_softmax(-1)
    predicted_NS = torch.arange(log_q_NSV.shape[1]) < tokens.tensors["lengths_N"][:, None] - 1
    log_q_NSV[predicted_NS].gather(1, labels[:, None]).sum().backward()
    assert kept[0].grad is not None
    return kept[0].grad[predicted_NS].square()


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_equals_explicit_gradients_times_recorded_losses(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = tiny_value(family), tiny_tokens(5, 12)
    labels = torch.arange(int(tokens.tensors["lengths_N"].sum()) - 5) * 7 % 97
    monkeypatch.setattr(backward, "draw_labels", lambda p_PV, samples, generator: labels[:, None])
    candidates = recorded_candidates(model, "int3-g32")
    found = scores(model, candidates, tokens, FisherRows(step="fisher_rows", batch=5))
    document_P = torch.repeat_interleave(tokens.tensors["document_N"].long(), tokens.tensors["lengths_N"].long() - 1)
    for name in ("layers.0.self_attn.qkv/int3-g32", "layers.2.mlp.down/int3-g32"):
        item, expected_P = candidates.children[name], torch.zeros(len(labels), dtype=torch.float64)
        for member in item.meta["members"]:
            square_PO = row_squares(model, tokens, labels, member).double()
            expected_P += square_PO @ item.tensors[f"{member}.row_loss"].double() / 2
        meta = found.children[name].meta
        assert meta["score"] == pytest.approx(expected_P.mean().item(), rel=1e-3)
        means = [expected_P[document_P == d].mean().item() for d in range(3)]
        assert meta["documents"] == pytest.approx(means, rel=1e-3)
        assert meta["weights"] == torch.bincount(document_P).tolist()


def test_ranks_candidates_as_the_full_metric_does() -> None:
    model, tokens = tiny_value(), tiny_tokens(8, 16, ragged=False)
    candidates = recorded_candidates(model, "int2-g32", "int3-g32", "int4-g32", hessian=_of_inputs(model, tokens))
    inputs = {"model": model, "candidates": candidates, "tokens": tokens}
    full = fisher.run(Fisher(step="fisher", samples=8), inputs, Env())["scores"].children
    rows = scores(model, candidates, tokens, FisherRows(step="fisher_rows", samples=8)).children
    ranks = [torch.tensor([each[n].meta["score"] for n in full]).argsort().argsort().double() for each in (full, rows)]
    assert torch.corrcoef(torch.stack(ranks))[0, 1].item() > 0.95


def _of_inputs(model: Output, tokens: Output):  # type: ignore[no-untyped-def]
    """The true Hessian of each linear's inputs on these tokens."""
    transformer, seen = modified_transformer(model, Output()), dict[str, torch.Tensor]()
    for name, module in transformer.named_modules():
        if name.endswith("_proj"):
            module.register_forward_hook(lambda m, x, z, name=name: seen.__setitem__(name, x[0].flatten(0, 1)))
    with torch.no_grad():
        transformer(input_ids=tokens.tensors["ids_NS"].long())
    return lambda member, inputs: 2 * seen[member].T @ seen[member] / len(seen[member])


def test_no_candidate_is_dequantized(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = tiny_value(), tiny_tokens()
    candidates = recorded_candidates(model, "int4-g32")
    only = {
        name: replace(item, tensors={n: t for n, t in item.tensors.items() if n.endswith(".row_loss")})
        for name, item in candidates.children.items()
    }
    assert scores(model, Output(children=only), tokens) == scores(model, candidates, tokens)


def test_seeds_decide_and_nothing_else_does() -> None:
    model, tokens = tiny_value(tied=True, dtype=torch.bfloat16), tiny_tokens()
    candidates = recorded_candidates(model, "int4-g32")
    torch.manual_seed(1)
    first = scores(model, candidates, tokens)
    torch.manual_seed(2)
    assert first == scores(model, candidates, tokens)
    assert first != scores(model, candidates, tokens, FisherRows(step="fisher_rows", batch=4, seed=1))


def test_candidates_without_row_losses_and_broken_ones_are_refused_by_name() -> None:
    model, tokens = tiny_value(), tiny_tokens()
    candidates = recorded_candidates(model, "int4-g32")
    name, row_loss = "layers.1.mlp.down/int4-g32", "model.layers.1.mlp.down_proj.row_loss"
    item = candidates.children[name]
    bare = replace(item, tensors={n: t for n, t in item.tensors.items() if n != row_loss})
    with pytest.raises(InputError, match=r"loss by output row\n.*layers\.1\.mlp\.down"):
        scores(model, Output(children={name: bare}), tokens)
    infinite = replace(item, tensors={**item.tensors, row_loss: item.tensors[row_loss] * float("inf")})
    with pytest.raises(InputError, match=r"not finite\n.*layers\.1\.mlp\.down in int4-g32"):
        scores(model, Output(children={name: infinite}), tokens)
    silent = replace(model, tensors={**model.tensors, "model.layers.0.mlp.down_proj.weight": torch.zeros(32, 64)})
    with pytest.raises(InputError, match=r"zero in every document.*\n.*layers\.0\.mlp\.gate_up"):
        scores(silent, candidates, tokens)
