"""What the build page and the self-contained report show of a build, worked out once for both."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from schemas.report import Contrast, Measured, Report
from ui.catalog import Line
from ui.figures.heatmap import legend
from ui.figures.scatter import Dot
from ui.figures.sensitivity import Scores
from ui.lineage import Branch, tree
from ui.words import measure, number, percent, short, size

GAP_WARNING = 1.5
"""Measured over predicted KL, or its inverse, beyond which a page warns that scores do not add up."""


@dataclass(frozen=True)
class Contestant:
    """A model measured on the evaluation text, and its name for people."""

    name: str
    about: str
    class_: str
    measured: Measured


@dataclass(frozen=True)
class BuildView:
    """A report with what stands around it; without a store there are no scores and no other builds."""

    report: Report
    line: Line | None = None
    scores: Scores | None = None
    others: Sequence[Line] = ()
    store: str = ""
    links: dict[str, str] = field(default_factory=dict)

    @cached_property
    def contestants(self) -> list[Contestant]:
        """Everything that was measured, best known first."""
        r = self.report
        found = [Contestant("original", "before compression", "original", r.original)]
        found.append(Contestant("mixed", "the packed file", "mixed", r.mixed))
        found.append(Contestant("allocated", "the plan, before training", "allocated", r.allocated))
        if r.uniform is not None:
            found.append(Contestant(f"uniform {r.uniform_format}", "best single format", "uniform", r.uniform))
        found.append(Contestant("greedy", "gain per byte", "greedy", r.greedy))
        return found

    @cached_property
    def most_kl(self) -> float:
        """The end of the shared scale of KL bars."""
        return max(c.measured.kl.high for c in self.contestants) * 1.02

    def contrast(self, first: str, second: str) -> Contrast | None:
        """A paired comparison, if it was made."""
        return next((c for c in self.report.contrasts if (c.first, c.second) == (first, second)), None)

    @cached_property
    def headline(self) -> str:
        """What the build is worth, in a sentence that claims no more than was measured."""
        contrast = self.contrast("mixed", "uniform")
        if contrast is None or self.report.uniform is None:
            return "No single format fits this budget: there is nothing uniform to compare with."
        against = f"uniform {self.report.uniform_format}, at no more bytes"
        if contrast.verdict == "no difference":
            return f"No difference from {against}: the interval of the difference contains zero."
        low, high = sorted((contrast.ratio.low, contrast.ratio.high))
        word = "less" if contrast.verdict == "better" else "more"
        share = f"{abs(100 * (contrast.ratio.value - 1)):.0f} %"
        return f"{share} {word} KL than {against} (95 % interval of the ratio {measure(low, 3)} to {measure(high, 3)})."

    @cached_property
    def legend(self) -> list[tuple[str, str, int, int]]:
        """Formats in use."""
        return legend(self.report.allocation)

    @cached_property
    def tree(self) -> Branch | None:
        """Lineage, from the packed folder down."""
        return tree(self.report)

    @cached_property
    def predicted_ratio(self) -> float | None:
        """Measured over predicted KL of the plan, before any training."""
        return self.report.allocated.kl.value / self.report.predicted_kl if self.report.predicted_kl > 0 else None

    @cached_property
    def additive(self) -> bool:
        """Whether the prediction is near enough to trust the budget explorer's numbers."""
        if self.report.fit is not None:
            return self.report.fit.holds
        ratio = self.predicted_ratio
        return ratio is not None and 1 / GAP_WARNING <= ratio <= GAP_WARNING

    def fact(self, *path: str) -> Any:
        """Something in the certificate; None if it is not there."""
        value: Any = self.report.certificate
        for part in path:
            value = value.get(part) if isinstance(value, dict) else None
        return value

    @cached_property
    def unit_rows(self) -> list[dict[str, Any]]:
        """The allocation with how stable each choice is when documents are resampled."""
        units = self.fact("stability", "units") or {}
        return [{"row": row, "agrees": (units.get(row.unit) or {}).get("agrees")} for row in self.report.allocation]

    @cached_property
    def size_dots(self) -> list[Dot]:
        """This build, its baselines, and other builds of the same model."""
        dots = [
            Dot(
                float(o.bytes or 0),
                o.kl,
                f"{o.recipe} {short(o.digest)}: {size(o.bytes)}, KL {number(o.kl)}",
                link=_link(o),
            )
            for o in self.others
            if o.kl is not None and o.bytes is not None
        ]
        for c in self.contestants[1:]:
            kl = c.measured.kl
            dots.append(Dot(float(c.measured.bytes), kl.value, c.name, c.class_, kl.low, kl.high, named=True))
        return dots

    @cached_property
    def prediction_dots(self) -> list[Dot]:
        """Predicted and measured KL of this plan and of other builds of the same model."""
        dots = [
            Dot(o.predicted, o.allocated, f"{o.recipe} {short(o.digest)}", link=_link(o))
            for o in self.others
            if o.predicted is not None and o.allocated is not None
        ]
        kl = self.report.allocated.kl
        return [*dots, Dot(self.report.predicted_kl, kl.value, "this plan", "allocated", kl.low, kl.high, named=True)]

    @cached_property
    def commands(self) -> list[tuple[str, str]]:
        """(what it does, command line) to make the build again and to check it."""
        store = f" --store {shlex.quote(self.store)}" if self.store else ""
        digest = short(self.report.build_digest)
        return [
            ("Build it again from its recipe", f"bitsmith run {self.report.recipe}.yaml{store}"),
            ("Compute a sample of its units again and compare bytes", f"bitsmith reproduce {digest}{store}"),
            ("Say why something would run again", f"bitsmith explain {self.report.recipe}.yaml{store}"),
            ("Show what it was made from", f"bitsmith lineage {digest}{store}"),
        ]

    @property
    def gain(self) -> str:
        """Change of KL against the best uniform format."""
        contrast = self.contrast("mixed", "uniform")
        return percent(contrast.ratio.value) if contrast is not None else "—"


def _link(line: Line) -> str:
    return f"/builds/{line.digest}"
