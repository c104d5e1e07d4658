"""Cholesky factors that do not depend on the number of threads.

I is the order of the matrix, split in panels of P columns.
"""

from __future__ import annotations

import torch

PANEL = 128
LANES = 16
"""MKL takes fp64 products whose sizes are multiples of this in one order, whatever the number of threads; others not
(AMD EPYC, MKL 2024.2 with MKL_CBWR=AVX2,STRICT)."""


class FactorError(ArithmeticError):
    """A matrix that should be positive definite is not."""


def cholesky_(A_II: torch.Tensor) -> torch.Tensor:
    """Lower L with L L^T = A, in place and in A's dtype; reads the lower triangle. FactorError if A is not positive
    definite.

    LAPACK's own blocking follows the number of threads, and with it the last bits of L. Here the panels are fixed, so
    that every sum is taken in one order: equal bits with 1 and 2 threads (tests), at LAPACK's speed.
    """
    if len(A_II) % LANES:
        return _padded(A_II)
    for start in range(0, len(A_II), PANEL):
        stop = min(start + PANEL, len(A_II))
        panel_IP = A_II[start:, start:stop]
        panel_IP.addmm_(A_II[start:, :start], A_II[start:stop, :start].T, alpha=-1)
        head_PP, failed = torch.linalg.cholesky_ex(panel_IP[: stop - start])
        if failed.item() or not torch.isfinite(head_PP).all():
            raise FactorError(f"not positive definite: leading minor of order {start + max(int(failed), 1)}")
        panel_IP[: stop - start] = head_PP
        if stop < len(A_II):
            below_IP = panel_IP[stop - start :]
            below_IP.copy_(torch.linalg.solve_triangular(head_PP, below_IP.T, upper=False).T)
    return A_II.tril_()


def _padded(A_II: torch.Tensor) -> torch.Tensor:
    """`cholesky_` of A with rows of the identity below, which its factor does not see."""
    order = len(A_II)
    larger_II = torch.eye(-(-order // LANES) * LANES, dtype=A_II.dtype, device=A_II.device)
    larger_II[:order, :order] = A_II
    return A_II.copy_(cholesky_(larger_II)[:order, :order])


def unit_upper_factor_(A_II: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """M unit upper triangular [I, I] and d > 0 [I] with H = M diag(d) M^T, given A = H.flip(0, 1), which is consumed.

    Flip H in both axes, take the lower factor, flip back to an upper C with H = C C^T; M = C / diag(C), d = diag(C)^2.
    With H^-1 = U^T U (U upper, what GPTQ's code computes by inverting), d_k = 1 / U_kk^2 and M = (diag(U)^-1 U)^-1.
    M is computed in A's dtype and returned in `dtype`, d stays in A's.
    """
    diagonal_I = cholesky_(A_II).diagonal().clone()
    return A_II.div_(diagonal_I).to(dtype).flip(0, 1), diagonal_I.square().flip(0)
