"""How the model's predictions curve in the weights of a linear, as a Kronecker product of two small matrices.

For an error dW of W, KL(original || changed) per position is about 1/2 tr(G dW A dW^T), with A = E[x x^T] of the inputs
and G = E[g g^T] of the gradients of the log-likelihood of labels drawn from the model itself. Sources: K-FAC (Martens
and Grosse 2015, arXiv:1503.05671); for rounding, YAQA (Tseng et al. 2025, arXiv:2505.22988), which fits the two factors
by power iteration; here they are the plain second moments.

O outputs, I inputs, R positions that a linear saw; M samples of labels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from steps.sensitivity.capture import Linears


@dataclass(frozen=True)
class Curvature:
    """The two factors, fp32, each with mean diagonal 1: of estimates only the comparison matters."""

    A_II: torch.Tensor
    G_OO: torch.Tensor

    def pull(self, D_OI: torch.Tensor) -> torch.Tensor:
        """G D A, half the gradient of `loss`."""
        return self.G_OO @ D_OI @ self.A_II

    def pull_of(self, at_K: torch.Tensor, move_K: torch.Tensor) -> torch.Tensor:
        """`pull` of a matrix that is 0 but for `move_K` at the flat places `at_K`; few moves cost less than many."""
        rows, columns = len(self.G_OO), len(self.A_II)
        if len(at_K) >= rows:
            D_OI = torch.zeros(rows * columns, device=move_K.device).index_copy_(0, at_K, move_K)
            return self.pull(D_OI.view(rows, columns))
        return (self.G_OO[:, at_K // columns] * move_K) @ self.A_II[at_K % columns]

    def diagonal(self) -> torch.Tensor:
        """What moving one weight alone by d costs is d^2 times this, [O, I]."""
        return torch.outer(self.G_OO.diagonal(), self.A_II.diagonal())


def curvature(captured: Iterable[Linears], path: str, damping: float) -> Curvature | None:
    """Of the linear at `path` within its block, summed over batches; None when no position reached it (an expert)."""
    passes = [batch.passes[path] for batch in captured if path in batch.passes]
    if not sum(len(each.input_RI) for each in passes):
        return None
    A_II = torch.stack([each.input_RI.T @ each.input_RI for each in passes]).sum(0)
    G_OO = torch.stack([torch.einsum("mro,mrp->op", each.gradient_MRO, each.gradient_MRO) for each in passes]).sum(0)
    if not (bool(A_II.any()) and bool(G_OO.any())):
        return None
    return Curvature(_damped(A_II, damping), _damped(G_OO, damping))


def _damped(moment: torch.Tensor, damping: float) -> torch.Tensor:
    scaled = moment / moment.diagonal().mean()
    scaled.diagonal().add_(damping)
    return scaled / (1 + damping)
