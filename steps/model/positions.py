"""Which positions of token windows are measured: those that have a next token.

N windows, S positions, P predicted positions (windows in order), T valid positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from schemas.errors import InputError
from steps.step import Value


@dataclass(frozen=True)
class Positions:
    """The predicted positions of a `tokens` value, in order of window and column; all int64.

    `valid_P` is each one's row among the T valid positions; `label_P` the next token; `document_P` a dense index over
    the documents that have any predicted position, of which there are `documents`.
    """

    window_P: torch.Tensor
    column_P: torch.Tensor
    valid_P: torch.Tensor
    label_P: torch.Tensor
    document_P: torch.Tensor
    documents: int

    def __len__(self) -> int:
        return len(self.label_P)


def predicted_positions(tokens: Value) -> Positions:
    """Every valid position but the last of its window. InputError when there is none."""
    ids_NS, length_N = tokens.tensors["ids_NS"].long(), tokens.tensors["lengths_N"].long()
    column_S = torch.arange(ids_NS.shape[1])
    window_P, column_P = torch.nonzero(column_S < length_N[:, None] - 1, as_tuple=True)
    if not len(window_P):
        raise InputError(
            "no token has a successor to predict",
            where="tokens",
            got=f"{len(length_N)} windows of lengths {length_N[:8].tolist()}",
            wanted="a window of at least 2 tokens",
            fix="use longer text or a larger `length` on the tokenize node",
        )
    start_N = length_N.cumsum(0) - length_N
    document_P = tokens.tensors["document_N"].long()[window_P]
    kept, dense_P = torch.unique(document_P, return_inverse=True)
    return Positions(
        window_P=window_P,
        column_P=column_P,
        valid_P=start_N[window_P] + column_P,
        label_P=ids_NS[window_P, column_P + 1],
        document_P=dense_P,
        documents=len(kept),
    )


@dataclass(frozen=True)
class Batch:
    """Some windows, cut at the longest; `rows_P` picks their predicted positions out of [n * s, ...]."""

    ids_NS: torch.Tensor
    rows_P: torch.Tensor

    def pick(self, value_NSX: torch.Tensor) -> torch.Tensor:
        """value_PX at the predicted positions."""
        return value_NSX.flatten(0, 1)[self.rows_P.to(value_NSX.device)]


def take(tokens: Value, windows: Sequence[int]) -> Batch:
    """The batch of these windows, in this order."""
    index_N = torch.tensor(windows)
    ids_NS, length_N = tokens.tensors["ids_NS"][index_N], tokens.tensors["lengths_N"].long()[index_N]
    longest = max(int(length_N.max()), 1)
    predicted_NS = torch.arange(longest) < length_N[:, None] - 1
    return Batch(ids_NS[:, :longest], torch.nonzero(predicted_NS.flatten()).squeeze(1))


def batches(tokens: Value, windows: int) -> Iterator[Batch]:
    """All windows in order, `windows` at a time; concatenated picks are in the order of `predicted_positions`."""
    total = len(tokens.tensors["lengths_N"])
    for start in range(0, total, windows):
        yield take(tokens, range(start, min(start + windows, total)))
