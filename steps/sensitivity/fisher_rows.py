"""The Fisher metric for nothing: no candidate is read or multiplied, so that it scales to any number of them.

Of E (g . dW x)^2, the terms of one output row o with itself are E g_o^2 (dw_o x)^2. If how much a row matters does not
depend on how large its error is at that token, they are E g_o^2 E (dw_o x)^2, and the second factor is the solver's
loss of the row, which every candidate carries. What is dropped beside that: the terms between rows, which are 0 on
average as far as rounding errors of different rows are independent.

The weighting of rows by mean square gradient is that of SqueezeLLM (arXiv:2306.07629) and of FWSVD (arXiv:2207.00112),
there with labels of the text, here with labels drawn from the model.

P predicted positions, O outputs, D documents; M samples of labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from schemas.artifact import Unit
from schemas.sensitivity import FisherRows
from steps.model.positions import Positions, batches, predicted_positions
from steps.model.stream import Stream
from steps.sensitivity.backward import backward
from steps.sensitivity.capture import Captured
from steps.sensitivity.fisher import by_block, paths
from steps.sensitivity.recorded import changed, row_loss
from steps.sensitivity.score import document_score
from steps.step import Env, Output, Value

Squares = Mapping[str, torch.Tensor]
"""Path within the block -> square_DO."""


def run(spec: FisherRows, inputs: Mapping[str, Value], env: Env) -> dict[str, Output]:
    """`scores`: 1/2 sum over rows of (mean square gradient, per document) x (the solver's loss of the row).

    One backward pass, fp32; sums over positions and rows in fp64. Of a candidate only its row losses are read.
    """
    model, tokens, candidates = inputs["model"], inputs["tokens"], inputs["candidates"]
    stream, positions, parts = Stream(model, env.device), predicted_positions(tokens), list(batches(tokens, spec.batch))
    weights = torch.bincount(positions.document_P, minlength=positions.documents).tolist()
    wanted, scores = by_block(model, candidates), dict[str, Output]()
    for k, _, captured in backward(stream, parts, spec.samples, spec.seed, env):
        used = {path: None for unit, _ in wanted.get(k, []) for path in paths(unit)}
        square = mean_squares(captured, used, positions)
        for unit, name in wanted.get(k, []):
            item = candidates.children[name]
            scores[name] = document_score(item.meta, damage(unit, item, square), weights, changed(item))
    return {"scores": Output(children={name: scores[name] for name in candidates.children})}


def damage(unit: Unit, item: Value, square: Squares) -> torch.Tensor:
    """1/2 sum over the unit's rows of mean square gradient times row loss, D in fp64."""
    terms_D = [square[path] @ row_loss(item, member) for path, member in paths(unit).items()]
    return torch.stack(terms_D).sum(0) / 2


def mean_squares(captured: Iterable[Captured], wanted: Iterable[str], positions: Positions) -> Squares:
    """Per path, square_DO fp64 on the CPU: mean over a document's predicted positions, and samples, of g_o^2."""
    count_D = torch.bincount(positions.document_P, minlength=positions.documents).double()
    return {path: sum_DO / count_D[:, None] for path, sum_DO in _sums(captured, tuple(wanted), positions).items()}


def _sums(captured: Iterable[Captured], wanted: Sequence[str], positions: Positions) -> Squares:
    found, done = dict[str, torch.Tensor](), 0
    for part in captured:
        document_P = positions.document_P[done : done + part.positions]
        for path in wanted:
            square_DO = part.squares(path, document_P, positions.documents)
            found[path] = found[path] + square_DO if path in found else square_DO
        done += part.positions
    return found
