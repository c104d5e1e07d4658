"""Papers about rounding as compositions of a fit and a solver; the short form's `method` names one."""

from __future__ import annotations

from typing import assert_never

from schemas.quantize import ClipSearch, Feedback, MinMax, Nearest, Rounding
from schemas.recipe import Method


def gptq() -> Rounding:
    """GPTQ, Frantar et al. 2023 (arXiv:2210.17323): error feedback through the Hessian, columns by falling diagonal.

    Differs from the paper: group scales are static (fitted on the original weights), so that column order needs no
    stored index; scales come from a Hessian-weighted clip search; Hessians come from the original model, not from
    the quantized prefix, so that a unit's codes do not depend on what the other units got.
    """
    return Rounding(fit=ClipSearch(kind="clip"), solver=Feedback(kind="feedback", damping=0.01, act_order=True))


def rtn() -> Rounding:
    """Round to nearest on a min-max grid, the baseline of every paper."""
    return Rounding(fit=MinMax(kind="minmax"), solver=Nearest(kind="rtn"))


def rounding_of(method: Method) -> Rounding:
    """The composition a method name stands for."""
    match method:
        case "gptq":
            return gptq()
        case "rtn" | "autoround" | "adaquant" | "discquant" | "bitdistiller":
            return rtn()
        case "pdquant":
            return Rounding(fit=ClipSearch(kind="clip", weighted=False), solver=Nearest(kind="rtn"))
        case _:
            assert_never(method)
