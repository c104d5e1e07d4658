"""KL by position against a loop over tokens, and what must hold of any sample."""

from __future__ import annotations

import math

import pytest
import torch
from models import tiny_tokens

from steps.model.positions import predicted_positions
from steps.step import Output
from steps.verify.bootstrap import draw, interval, means
from steps.verify.by_position import by_position, position_rows
from steps.verify.metrics import document_means


def test_spans_double_and_hold_each_token_once() -> None:
    positions = predicted_positions(tiny_tokens(7, 20, documents=3))
    kl_P = torch.rand(len(positions), generator=torch.Generator().manual_seed(0))
    spans = by_position(kl_P, positions)
    last = int(positions.column_P.max())
    assert [(s["first"], s["last"]) for s in spans] == [(0, 0), (1, 1), (2, 3), (4, 7), (8, 15), (16, last)]
    for span in spans:
        for document, row in enumerate(span["documents"]):
            own = [
                float(kl)
                for kl, column, d in zip(kl_P, positions.column_P, positions.document_P, strict=True)
                if span["first"] <= column <= span["last"] and d == document
            ]
            assert row["tokens"] == len(own)
            assert row["kl"] == pytest.approx(sum(own) / max(len(own), 1))


def test_weighted_by_tokens_the_spans_add_up_to_the_whole() -> None:
    positions = predicted_positions(tiny_tokens(9, 16, documents=4))
    kl_P = torch.rand(len(positions), generator=torch.Generator().manual_seed(1))
    mean_D, token_D = document_means(kl_P, positions)
    count_BD = draw(positions.documents, 200, 0)
    whole = [{"tokens": t, "kl": mean} for t, mean in zip(token_D, mean_D, strict=True)]
    spans = by_position(kl_P, positions)
    rows = position_rows(spans, spans[:2], count_BD)
    tokens = [sum(d["tokens"] for d in span["documents"]) for span in spans]
    total = math.fsum(row.kl.value * t for row, t in zip(rows, tokens, strict=True)) / sum(tokens)
    assert total == pytest.approx(interval(means(count_BD, whole, "kl")).value)
    assert [row.uniform == row.kl for row in rows] == [True, True, *[False] * (len(rows) - 2)]


def test_a_span_that_one_document_reaches_has_an_interval() -> None:
    """Resamples without that document know nothing of it; its own mean is all there is."""
    ids_NS = torch.zeros(3, 8, dtype=torch.int32)
    lengths_N, document_N = torch.tensor([2, 2, 8]), torch.tensor([0, 1, 2])
    tokens = Output(tensors={"ids_NS": ids_NS, "lengths_N": lengths_N, "document_N": document_N})
    positions = predicted_positions(tokens)
    row = position_rows(by_position(torch.full((len(positions),), 0.5), positions), (), draw(3, 100, 0))[-1]
    assert (row.first, row.last, row.uniform) == (4, 6, None)
    assert (row.kl.value, row.kl.low, row.kl.high) == (0.5, 0.5, 0.5)
