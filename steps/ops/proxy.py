"""The proxy loss: what an error in a linear's weights does to its output on the calibration text.

O outputs, I inputs.
"""

from __future__ import annotations

import torch


def proxy_loss(D_OI: torch.Tensor, H_II: torch.Tensor) -> torch.Tensor:
    """1/2 d H d^T of each row of D = What - W, [O] in fp64; the matrix product is in D's dtype.

    With H = (2/T) sum x x^T its sum is E ||D x||^2, the mean squared error of the output vector of a token.
    """
    return ((D_OI @ H_II.to(D_OI.dtype)).double() * D_OI).sum(1) / 2
