"""evaluate against transformers' own model, and against exactness."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models import tiny_tokens, tiny_value
from selections import modified_transformer, representable, selection_of

from schemas.calibrate import Reference
from schemas.errors import InputError
from schemas.verify import Evaluate
from steps.calibrate import reference
from steps.step import Env, Output
from steps.verify import evaluate
from steps.verify.metrics import compare_chunk

SPEC, ENV = Evaluate(step="evaluate", batch=4), Env(scratch=Path("."))


def evaluation(model: Output, selection: Output, tokens: Output, spec: Evaluate = SPEC) -> Output:
    original = reference.run(Reference(step="reference", batch=3), {"model": model, "tokens": tokens}, ENV)
    inputs = {"model": model, "selection": selection, "tokens": tokens, "reference": original["reference"]}
    return evaluate.run(spec, inputs, ENV)["evaluation"]


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_equals_transformers_with_the_same_weights(family: str) -> None:
    model, tokens = tiny_value(family), tiny_tokens(6, 16, ragged=False)
    selection = selection_of(model, "int3-g32-asym")
    norms = {"model.norm.weight": torch.full((32,), 1.25), "model.layers.1.input_layernorm.weight": torch.ones(32)}
    changed = Output(selection.meta, children={**selection.children, "norms": Output(tensors=norms)})
    found = evaluation(model, changed, tokens).meta
    ids = tokens.tensors["ids_NS"].long()
    with torch.no_grad():
        original_NSV = modified_transformer(model, Output())(input_ids=ids).logits
        logits_NSV = modified_transformer(model, changed)(input_ids=ids).logits
    for d, row in enumerate(found["documents"]):
        of = tokens.tensors["document_N"] == d
        naive = compare_chunk(
            original_NSV[of, :-1].flatten(0, 1), logits_NSV[of, :-1].flatten(0, 1), ids[of, 1:].flatten()
        )
        assert row["tokens"] == len(naive.kl_P)
        assert row["kl"] == pytest.approx(naive.kl_P.double().mean().item(), rel=1e-4)
        assert row["nll"] == pytest.approx(naive.nll_P.double().mean().item(), rel=1e-5)
        assert row["top1"] == pytest.approx(naive.top1_P.mean().item())
        assert found["original"][d]["nll"] == pytest.approx(naive.original_nll_P.double().mean().item(), rel=1e-5)
    assert sum(row["kl"] for row in found["documents"]) > 0.01


def test_weights_that_the_format_holds_exactly_change_nothing() -> None:
    model, tokens = tiny_value(), tiny_tokens()
    selection = selection_of(model, "int4-row")
    found = evaluation(representable(model, selection), selection, tokens).meta
    assert all(row["kl"] < 1e-9 and row["top1"] == 1 for row in found["documents"])
    assert [row["nll"] for row in found["documents"]] == pytest.approx([row["nll"] for row in found["original"]])


def test_is_deterministic_and_the_batch_changes_only_last_bits() -> None:
    model, tokens = tiny_value(tied=True, dtype=torch.bfloat16), tiny_tokens(9, 12)
    selection = selection_of(model, "int4-g32")
    first = evaluation(model, selection, tokens)
    assert first == evaluation(model, selection, tokens)
    other = evaluation(model, selection, tokens, Evaluate(step="evaluate", batch=1))
    assert [r["kl"] for r in first.meta["documents"]] == pytest.approx([r["kl"] for r in other.meta["documents"]], 1e-4)


def test_reads_leave_the_model_as_it_was() -> None:
    model = tiny_value()
    before = {name: tensor.clone() for name, tensor in model.tensors.items()}
    evaluation(model, selection_of(model, "int2-g32"), tiny_tokens())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.tensors.items())


def test_a_selection_of_another_model_and_a_reference_of_other_tokens_are_refused() -> None:
    model, tokens = tiny_value(), tiny_tokens()
    deeper = tiny_value(num_hidden_layers=4)
    with pytest.raises(InputError, match=r"model\.layers\.3"):
        evaluation(model, selection_of(deeper, "int4-g32"), tokens)
    original = reference.run(Reference(step="reference"), {"model": model, "tokens": tiny_tokens(3)}, ENV)["reference"]
    inputs = {"model": model, "selection": selection_of(model, "int4-row"), "tokens": tokens, "reference": original}
    with pytest.raises(InputError, match="other tokens"):
        evaluate.run(SPEC, inputs, ENV)
