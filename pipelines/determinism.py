"""One order of summation, whatever the number of threads.

A sum of floats depends on its order, and a candidate that differs in its last bit is another artifact. So MKL is asked
for one order in every matrix product (its "strict conditional numerical reproducibility"), Cholesky factors are made of
fixed panels (steps/ops/cholesky.py), and a candidate's facts are summed exactly (math.fsum); a GPU takes its
deterministic kernels (steps/device.py). Nothing is done about torch's other reductions, and processors on which MKL
takes other kernels: `bitsmith reproduce` tells.
"""

from __future__ import annotations

import os

MKL_ORDER = "AVX2,STRICT"
"""Kernels that every x86 server of the last ten years has. On an AMD EPYC products take as long as without (best of 16:
0.95 to 1.15 of the speed, fp32 and fp64). Not measured on Intel: AVX-512 units then idle; MKL_CBWR=AVX512,STRICT uses
them, and gives other bits."""


def fix_order_of_sums() -> None:
    """To be called before the first product of a process: MKL reads its environment then. A value that is set stays."""
    os.environ.setdefault("MKL_CBWR", MKL_ORDER)
