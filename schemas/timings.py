"""How long one linear takes, measured: what `bitsmith latency` writes and a latency budget reads."""

from __future__ import annotations

from pydantic import Field

from schemas.base import Spec
from schemas.budget import Timing
from schemas.format import FormatField
from schemas.pack import PackFormat


class MeasuredTiming(Spec):
    """Median microseconds of one linear of shape (outputs, inputs) in a format.

    `noise` is half the span of the middle half of the samples over their median; each of `samples` is a mean of calls.
    """

    shape: tuple[int, int]
    format: FormatField
    microseconds: float = Field(gt=0)
    noise: float = Field(ge=0)
    samples: int = Field(ge=1)

    def timing(self) -> Timing:
        """What a budget takes of it."""
        return Timing(shape=self.shape, format=self.format, microseconds=self.microseconds)


class TimingTable(Spec):
    """Timings of one device and engine, for `tokens` rows of input at once."""

    device: str
    engine: str
    pack: PackFormat
    dtype: str
    tokens: int = Field(ge=1)
    threads: int = Field(ge=1)
    timings: tuple[MeasuredTiming, ...] = Field(min_length=1)
