"""What a report says of refinement: codes chosen again, and what training did."""

from __future__ import annotations

from schemas.base import Spec

Check = dict[str, float]
"""`step`, `held_out` loss there, and `train`, the mean loss of the steps since the check before."""


class DistilledBlock(Spec):
    """The training of some blocks, from `first_block` on; before and after are relative output errors."""

    first_block: int
    before: float
    after: float
    step_kept: int
    curve: tuple[Check, ...] = ()
    gap: float | None = None
    """As in Distilled."""


class Distilled(Spec):
    """What training did, on windows of its text that it never trained on."""

    measure: str = "KL"
    """What `before` and `after` are: KL, or a block's relative output error."""
    before: float
    after: float
    step_kept: int
    """0: the input stayed as it was."""
    tokens: int
    passes: float = 1.0
    """How often the text was used; above 1 nothing learned is fresh."""
    curve: tuple[Check, ...] = ()
    """Empty where blocks were trained one after the other: see `blocks`."""
    blocks: tuple[DistilledBlock, ...] = ()
    gap: float | None = None
    """Held-out less training loss where `step_kept` was checked (of an input that stayed, at the last check); None
    where the two are not the same quantity, as with another objective than KL or codes that are soft while trained."""


class Recoded(Spec):
    """What choosing codes again did: KL on windows of the training text that nothing was learned from."""

    before: float
    after: float
    """`before` itself where the codes stayed."""
    moved: float
    """Share of the codes that were changed, or would have been."""
    windows: int
    """Windows of text that the curvature is of."""
