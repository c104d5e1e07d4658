"""Second moments of a linear's input: the Hessian of its output error.

T tokens, I inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

SPECTRUM_LIMIT = 4096
"""Largest order whose eigenvalues are computed: 1.6 s on one core at 2048, growing with the cube."""


@dataclass
class Hessian:
    """Sum of x x^T over the rows it is shown: fp32 products, summed over calls in fp64 on the rows' device.

    Measured at 4,096 rows a call: the relative error is that of storing the result in fp32 (1e-7), at a quarter to two
    fifths of the time of fp64 products, which would make this the larger part of calibration.
    """

    sum_II: torch.Tensor
    tokens: int = 0

    @classmethod
    def empty(cls, inputs: int, device: torch.device) -> Hessian:
        """Of no tokens yet."""
        return cls(torch.zeros(inputs, inputs, dtype=torch.float64, device=device))

    def add(self, x_TI: torch.Tensor) -> None:
        """Count these tokens, fp32."""
        self.sum_II += x_TI.T @ x_TI
        self.tokens += len(x_TI)

    def result(self) -> torch.Tensor:
        """H_II = (2/T) sum x x^T, fp32, exactly symmetric, undamped, on the CPU (methods: GPTQ, arXiv 2210.17323)."""
        mean_II = self.sum_II / max(self.tokens, 1)
        return (mean_II + mean_II.T).float().cpu()


def spectrum(H_II: torch.Tensor) -> dict[str, int | float | None]:
    """`rank`, `condition` (largest over smallest eigenvalue, of those counted), `dead` inputs; from fp64 eigenvalues.

    An eigenvalue counts when it exceeds 2 eps ||H||_F (eps of fp32), four times the most that rounding H's entries to
    fp32 can move it by (Weyl). Three digits of the condition are kept: LAPACK's last bits follow the number of threads.
    Above SPECTRUM_LIMIT, rank and condition are None.
    """
    dead = int((H_II.diagonal() == 0).sum())
    if len(H_II) > SPECTRUM_LIMIT:
        return {"rank": None, "condition": None, "dead": dead}
    eigenvalues_I = torch.linalg.eigvalsh(H_II.double())
    floor = 2 * torch.finfo(torch.float32).eps * float(torch.linalg.matrix_norm(H_II.double()))
    counted = eigenvalues_I[eigenvalues_I > floor]
    condition = float(f"{float(counted[-1] / counted[0]):.3g}") if len(counted) else 0.0
    return {"rank": len(counted), "condition": condition, "dead": dead}
