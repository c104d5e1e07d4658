"""Predicted positions of token windows, and batches that pick them."""

from __future__ import annotations

import pytest
import torch
from models import tiny_tokens

from schemas.errors import InputError
from steps.model.positions import batches, predicted_positions, take
from steps.step import Output


def test_positions_index_the_valid_rows_in_order() -> None:
    tokens = tiny_tokens(5, 8)
    positions = predicted_positions(tokens)
    ids, lengths = tokens.tensors["ids_NS"].long(), tokens.tensors["lengths_N"].tolist()
    valid_T = torch.cat([ids[n, :length] for n, length in enumerate(lengths)])
    assert torch.equal(valid_T[positions.valid_P], ids[positions.window_P, positions.column_P])
    assert torch.equal(valid_T[positions.valid_P + 1], positions.label_P)
    assert len(positions) == sum(lengths) - len(lengths)


def test_picks_of_batches_are_in_the_order_of_positions() -> None:
    tokens = tiny_tokens(7, 9)
    positions, ids = predicted_positions(tokens), tokens.tensors["ids_NS"]
    expected = ids[positions.window_P, positions.column_P]
    for size in (1, 2, 7, 20):
        picked = [part.pick(part.ids_NS[..., None]).squeeze(1) for part in batches(tokens, size)]
        assert torch.equal(torch.cat(picked), expected)
    assert torch.equal(take(tokens, [3]).ids_NS[0], ids[3, : tokens.tensors["lengths_N"][3]])


def test_documents_without_predictions_are_left_out_and_none_at_all_is_an_error() -> None:
    tensors = dict(tiny_tokens(3, 6, documents=3, ragged=False).tensors)
    some = Output(tensors=tensors | {"lengths_N": torch.tensor([6, 1, 6])})
    assert predicted_positions(some).documents == 2
    with pytest.raises(InputError, match="successor"):
        predicted_positions(Output(tensors=tensors | {"lengths_N": torch.tensor([1, 1, 0])}))
