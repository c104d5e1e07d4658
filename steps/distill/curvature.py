"""How the model's predictions curve in the weights of a linear, as a Kronecker product of two small matrices.

For an error dW of W, KL(original || changed) per position is about 1/2 tr(G dW A dW^T), with A = E[x x^T] of the inputs
and G = E[g g^T] of the gradients of the log-likelihood of labels drawn from the model itself. Sources: K-FAC (Martens
and Grosse 2015, arXiv:1503.05671); for rounding, YAQA (Tseng et al. 2025, arXiv:2505.22988), which fits the two factors
by power iteration; here they are the plain second moments.

O outputs, I inputs, R positions that a linear saw; M samples of labels.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import torch

from steps.sensitivity.capture import Captured, Linears


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


@dataclass(frozen=True)
class Moments:
    """Sums of outer products over batches, by path within a block; linears with one input share the `first` one's."""

    input_II: dict[str, torch.Tensor]
    gradient_OO: dict[str, torch.Tensor]
    first: dict[str, str]

    def curvature(self, path: str, damping: float) -> Curvature | None:
        """Of the linear at `path`; None when no position reached it (an expert)."""
        if path not in self.first:
            return None
        A_II, G_OO = self.input_II[self.first[path]], self.gradient_OO[path]
        if not (bool(A_II.any()) and bool(G_OO.any())):
            return None
        return Curvature(_damped(A_II, damping), _damped(G_OO, damping))


def moments(captured: Iterable[Captured], wanted: Collection[str]) -> Moments:
    """Of the wanted linears of a block; a batch is let go before the next one is asked for."""
    found = Moments({}, {}, {})
    for batch in captured:
        if isinstance(batch, Linears):
            _add(found, batch, wanted)
    return found


def _add(found: Moments, batch: Linears, wanted: Collection[str]) -> None:
    paths = dict[int, str]()
    for path, seen in batch.passes.items():
        if path in wanted and len(seen.input_RI):
            first = found.first.setdefault(path, paths.setdefault(id(seen.input_RI), path))
            if first == path:
                _sum(found.input_II, path, seen.input_RI.T @ seen.input_RI)
            gradient_RO = seen.gradient_MRO.flatten(0, 1)
            _sum(found.gradient_OO, path, gradient_RO.T @ gradient_RO)


def _sum(sums: dict[str, torch.Tensor], path: str, product: torch.Tensor) -> None:
    sums[path] = sums[path].add_(product) if path in sums else product


def _damped(moment: torch.Tensor, damping: float) -> torch.Tensor:
    scaled = moment / moment.diagonal().mean()
    scaled.diagonal().add_(damping)
    return scaled / (1 + damping)
