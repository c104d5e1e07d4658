"""Per-token and per-document metrics against naive fp64 oracles."""

from __future__ import annotations

import math

import pytest
import torch
from models import tiny_tokens

from steps.model.positions import predicted_positions
from steps.verify import metrics


def naive_kl(original_PV: torch.Tensor, logits_PV: torch.Tensor) -> torch.Tensor:
    """sum p (log p - log q) in fp64, one row at a time."""
    rows = []
    for a, b in zip(original_PV.double(), logits_PV.double(), strict=True):
        p, q = a.softmax(0), b.softmax(0)
        rows.append(sum(float(p[v]) * (math.log(p[v]) - math.log(q[v])) for v in range(len(p))))
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("size", [1e-4, 1e-2, 1.0, 5.0])
def test_kl_is_that_of_the_definition(size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    original = 3 * torch.randn(20, 50, generator=generator)
    logits = original + size * torch.randn(20, 50, generator=generator)
    found = metrics.compare_chunk(original, logits, torch.zeros(20, dtype=torch.int64)).kl_P
    torch.testing.assert_close(found.double(), naive_kl(original, logits), rtol=2e-3, atol=1e-12)


def test_kl_survives_extreme_logits() -> None:
    original, logits = torch.tensor([[0.0, -200.0, 0.0]]), torch.tensor([[0.0, 0.0, -200.0]])
    found = metrics.compare_chunk(original, logits, torch.tensor([0]))
    # p = (1/2, 0, 1/2), q = (1/2, 1/2, 0): 1/2 log(1) + 1/2 (log 1/2 + 200 + log 2), exact but for e^-200.
    assert found.kl_P.item() == pytest.approx(100.0, rel=1e-5)
    assert metrics.compare_chunk(logits, logits, torch.tensor([0])).kl_P.item() < 1e-20


def test_shifted_logits_are_the_same_prediction_to_second_order() -> None:
    """Adding a constant changes nothing but the last bits, and those cost only their square."""
    logits = 5 * torch.randn(64, 500, generator=torch.Generator().manual_seed(1))
    found = metrics.compare_chunk(logits, logits + 7.3, torch.zeros(64, dtype=torch.int64))
    assert found.kl_P.max() < 1e-11


def test_labels_documents_and_top1_by_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, vocab = tiny_tokens(7, 9, vocab=31, documents=3), 31
    generator = torch.Generator().manual_seed(2)
    original, model = (torch.randn(7, 9, vocab, generator=generator) for _ in range(2))
    positions = predicted_positions(tokens)
    monkeypatch.setattr(metrics, "CHUNK", 4 * vocab)
    at = (positions.window_P, positions.column_P)
    found = metrics.compare(lambda s: original[at][s], lambda s: model[at][s], positions, vocab)
    rows = metrics.documents_meta(found, positions)["documents"]
    ids, lengths, documents = (tokens.tensors[n].tolist() for n in ("ids_NS", "lengths_N", "document_N"))
    for d, row in enumerate(rows):
        nll, top1 = [], []
        for n in (n for n in range(7) if documents[n] == d):
            for s in range(lengths[n] - 1):
                nll.append(-model[n, s].double().log_softmax(0)[ids[n][s + 1]].item())
                top1.append(float(model[n, s].argmax() == original[n, s].argmax()))
        assert row["tokens"] == len(nll)
        assert row["nll"] == pytest.approx(sum(nll) / len(nll), rel=1e-6)
        assert row["top1"] == pytest.approx(sum(top1) / len(top1))
