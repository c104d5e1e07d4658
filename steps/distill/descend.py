"""Coordinate descent on the codes of one matrix under a Kronecker-factored curvature.

Sources: coordinate descent on the layer's quadratic loss from QuantEase (Behdin et al. 2023, arXiv:2309.01885); the
two-sided quadratic from YAQA (Tseng et al. 2025, arXiv:2505.22988), which rounds once, with feedback. Differs from
both: starts at a solver's codes and moves many codes of different rows at once, as many as the quadratic bears.

O outputs, I inputs, K moves of a row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from steps.distill.codes.code import Bounds
from steps.distill.codes.spacing import Spacing
from steps.distill.curvature import Curvature

FIRST_SHARE = 16.0
"""Codes that a row moves in the first pass; the share then follows what the quadratic bears."""
MORE, FEWER = 1.15, 1 / 1.6
"""Factors on the share after a pass that gained what it promised, and after one that did not. On the demo model they
reach within 60 passes what moves drawn at random reach within 250."""
KEPT_PROMISE = 0.3
"""Least share of the gain that moves promise one by one for which more are tried at once."""


@dataclass(frozen=True)
class Gain:
    """The quadratic's value before and after; of so many `codes`, `moved` differ from the first ones."""

    before: float
    after: float
    moved: int
    codes: int


@dataclass(frozen=True)
class Descent:
    """New whole levels, and what they gained."""

    level_OGJ: torch.Tensor
    gain: Gain


@torch.no_grad()
def descend(
    level_OGJ: torch.Tensor, bounds: Bounds, spacing: Spacing, W_OI: torch.Tensor, curve: Curvature, passes: int
) -> Descent:
    """Move codes one level at a time while tr(G D A D^T) falls, D = dequantized - W; never ends above its start.

    In a pass every row proposes its best moves, each judged alone; with less than one a row, only the best rows move.
    Moves that together gain nothing are taken back. Ends when no single move gains, or after `passes`. fp32, no random
    numbers.
    """
    first_OGJ, shape = level_OGJ, level_OGJ.shape
    D_OI = spacing.weights(level_OGJ).flatten(1) - W_OI
    P_OI = curve.pull(D_OI)
    before = loss = _loss(P_OI, D_OI)
    diagonal_OI, rising_OGJ = curve.diagonal(), spacing.step_OG1.sign()
    share = min(FIRST_SHARE, W_OI.shape[1])
    for _ in range(passes):
        next_OGJ = bounds.clamp(level_OGJ - P_OI.view(shape).sign() * rising_OGJ)
        move_OI = spacing.apart(next_OGJ, level_OGJ).flatten(1)
        gain_OI = -move_OI * (2 * P_OI + move_OI * diagonal_OI)
        at_K = _best(gain_OI, share)
        if not len(at_K):
            break
        move_K, promised = move_OI.flatten()[at_K], gain_OI.flatten()[at_K].sum().item()
        tried_OI, moved_OI = P_OI + curve.pull_of(at_K, move_K), D_OI.flatten().index_add(0, at_K, move_K).view_as(D_OI)
        found = _loss(tried_OI, moved_OI)
        share *= MORE if loss - found > KEPT_PROMISE * promised else FEWER
        if found < loss:
            level_OGJ = level_OGJ.flatten().index_copy(0, at_K, next_OGJ.flatten()[at_K]).view(shape)
            D_OI, P_OI, loss = moved_OI, tried_OI, found
        share = min(max(share, 1 / len(W_OI)), W_OI.shape[1])
    return _judged(first_OGJ, level_OGJ, spacing, W_OI, curve, before)


def _judged(
    first_OGJ: torch.Tensor,
    level_OGJ: torch.Tensor,
    spacing: Spacing,
    W_OI: torch.Tensor,
    curve: Curvature,
    before: float,
) -> Descent:
    """With the loss computed anew: sums kept over many passes drift."""
    D_OI = spacing.weights(level_OGJ).flatten(1) - W_OI
    after = _loss(curve.pull(D_OI), D_OI)
    if after >= before:
        return Descent(first_OGJ, Gain(before, before, 0, first_OGJ.numel()))
    return Descent(level_OGJ, Gain(before, after, int((level_OGJ != first_OGJ).sum()), level_OGJ.numel()))


def _best(gain_OI: torch.Tensor, share: float) -> torch.Tensor:
    """Flat places of each row's `share` best moves that gain; below one, of the best moves of that share of rows."""
    rows, columns = gain_OI.shape
    best_OK, at_OK = gain_OI.topk(int(share), dim=1) if share >= 2 else gain_OI.max(dim=1, keepdim=True)
    at_OK = at_OK + torch.arange(rows, device=at_OK.device)[:, None] * columns
    if share < 1:
        best_OK, row_O = best_OK[:, 0].topk(max(math.ceil(share * rows), 1))
        at_OK = at_OK[row_O, 0]
    return at_OK[best_OK > 0]


def _loss(P_OI: torch.Tensor, D_OI: torch.Tensor) -> float:
    return float((P_OI * D_OI).sum(dtype=torch.float64))
