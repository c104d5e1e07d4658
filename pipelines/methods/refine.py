"""Papers about learned rounding as compositions of the training parts; `distill.method` of a short recipe names one.

What is trained, what is matched, over which scope, by which optimizer: each row says only where it differs from the
defaults of `schemas/distill.py`. Token budgets are the recipe's, not the papers': every text is used once.
"""

from __future__ import annotations

from typing import assert_never

from schemas.distill import (
    Annealed,
    Blocks,
    Box,
    Distill,
    Logits,
    Offsets,
    Outputs,
    Rates,
    Schedule,
    SignDescent,
    StraightThrough,
)
from schemas.recipe import Refinement

RECODED: frozenset[Refinement] = frozenset({"recode", "latent", "scales"})
"""Methods that keep to the codes they are given, which are first chosen again by curvature (`Recode`): QuantEase
(Behdin et al. 2023, arXiv:2309.01885) under the Kronecker-factored curvature of YAQA (Tseng et al. 2025,
arXiv:2505.22988). The others choose codes anew, each its own way."""
UNTRAINED: frozenset[Refinement] = frozenset({"recode"})
"""Methods without a training."""


def latent() -> Distill:
    """The default: codes by latent levels from the solver's own codes, with scales and norms, end to end."""
    return Distill(step="distill")


def scales() -> Distill:
    """Scales and norms alone, end to end, as in many papers' last stage (AQLM's fine-tuning, PV-Tuning's P step)."""
    return Distill(step="distill", rates=Rates(scales=3e-3, norms=3e-3))


def autoround() -> Distill:
    """AutoRound, Cheng et al. 2024 (arXiv:2309.05516): offsets and ranges by sign descent, block by block.

    Differs from the paper: every window is used once (there: 200 steps over 128 to 512 sequences), a block is judged on
    held-out windows (there: by its training loss), one scale factor instead of separate minimum and maximum (zero
    points stay), at a rate that does not follow the steps: on the demo from candidates rounded to nearest, 96 steps, KL
    on held-out windows fell from 0.02961 to 0.00937 so, and to 0.00960 with the offsets' rate.
    """
    return Distill(
        step="distill",
        codes=Offsets(kind="offsets"),
        rates=Rates(codes="auto", scales=5e-3),
        optimizer=SignDescent(kind="sign"),
        schedule=Schedule(warmup=0, shape="linear"),
        objective=(Outputs(kind="outputs"),),
        scope=Blocks(kind="blocks"),
    )


def discquant() -> Distill:
    """DiscQuant, Chee et al. 2025 (arXiv:2501.06417): a place between two neighbours, linear pull, end-to-end KL."""
    return Distill(
        step="distill",
        codes=Box(kind="box"),
        rates=Rates(codes=0.1),
        schedule=Schedule(warmup=0.125),
        objective=(Logits(kind="logits"),),
    )


def adaquant() -> Distill:
    """AdaQuant, Hubara et al. 2021 (arXiv:2006.10518): free perturbations of the weights, straight-through, and scales.

    Differs from the paper: matches the output of a block, not of each linear; weights only.
    """
    return Distill(
        step="distill",
        codes=StraightThrough(kind="ste", start="weights"),
        rates=Rates(codes="auto", scales=1e-3),
        objective=(Outputs(kind="outputs"),),
        scope=Blocks(kind="blocks"),
    )


def pdquant() -> Distill:
    """PD-Quant, Liu et al. 2023 (arXiv:2212.07048): annealed rounding of a block against its output and the prediction.

    Differs from the paper: weights only; no correction of input distributions, which rests on batch-norm statistics.
    """
    return Distill(
        step="distill",
        codes=Annealed(kind="annealed"),
        rates=Rates(codes=3e-2),
        objective=(Outputs(kind="outputs"), Logits(kind="logits", temperature=4, weight=10)),
        scope=Blocks(kind="blocks"),
    )


def bitdistiller() -> Distill:
    """BitDistiller, Du et al. 2024 (arXiv:2402.10631): straight-through codes, forward and reverse KL, end to end.

    Differs from the paper: the mix is fixed (there: by the teacher's confidence), text is given, not sampled.
    """
    return Distill(
        step="distill",
        codes=StraightThrough(kind="ste", start="weights"),
        rates=Rates(codes="auto", norms=1e-3),
        objective=(Logits(kind="logits", divergence="mixed", mix=0.5),),
    )


def refinement_of(name: Refinement) -> Distill:
    """The composition a name stands for."""
    match name:
        case "latent" | "recode":
            return latent()
        case "scales":
            return scales()
        case "autoround":
            return autoround()
        case "discquant":
            return discquant()
        case "adaquant":
            return adaquant()
        case "pdquant":
            return pdquant()
        case "bitdistiller":
            return bitdistiller()
        case _:
            assert_never(name)
