"""Who is champion: the build of a recipe that is to be used, replaced only by one that is not worse.

Rules, in this order; the first that applies decides:

1. A build whose gates did not all pass is no champion.
2. Where there is no champion, a build that passed becomes it.
3. Both must have been measured on the same tokens; otherwise nothing can be said, and the champion stays.
4. The build must have been made for the same budget, or have no more bytes; more bytes are no achievement.
5. Their KL is compared on the same documents with a paired bootstrap. If the original model changed, each KL is against
   an original of its own and says nothing about the other; then the negative log-likelihood of the text is compared.
   Only "worse", an interval wholly above zero, keeps the champion: of two that cannot be told apart the newer is used,
   because it is the one made of today's model, text and code.

A person may decide otherwise with `bitsmith promote`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from pipelines.build import read_report
from pipelines.graph import bind
from schemas.base import Spec
from schemas.errors import InputError
from schemas.recipe import Recipe
from schemas.report import Contrast, Report, Standing
from schemas.verify import Verify
from store.errors import Unavailable
from store.open import Store


@dataclass(frozen=True)
class Evidence:
    """What a build was measured on and for: digests of its original and of its evaluation tokens, documents, budget."""

    model: str
    tokens: str
    documents: tuple[dict[str, float], ...]
    budget: Spec | None
    verify: Verify


def judge(report: Report, store: Store) -> Standing:
    """How a build stands against the present champion of its recipe; changes nothing."""
    champion = store.builds.champion(report.recipe)
    if not report.passed:
        return Standing(champion=False, why="its gates did not pass", against=champion)
    if champion is None:
        return Standing(champion=True, why="the first build of this recipe that passed")
    if champion == report.build_digest:
        return Standing(champion=True, why="it is the champion")
    record = store.builds.load(champion)
    rival = read_report(record) if record is not None else None
    if rival is None:
        return Standing(champion=False, why="the champion's record cannot be read", against=champion)
    try:
        return _compare(report, rival, store)
    except (Unavailable, InputError, ValidationError, StopIteration) as error:
        return Standing(champion=False, why=f"the champion's measurements are not at hand: {error}", against=champion)


def _compare(report: Report, rival: Report, store: Store) -> Standing:
    new, old = evidence(report, store), evidence(rival, store)
    name = rival.build_digest
    if new.tokens != old.tokens:
        why = "measured on other text than the champion"
        return Standing(champion=False, why=why, against=name)
    more = report.bytes.actual - rival.bytes.actual
    if (new.budget is None or new.budget != old.budget) and more > 0:
        why = f"made for another budget, and {more:,} bytes larger than the champion"
        return Standing(champion=False, why=why, against=name)
    metric = "kl" if new.model == old.model else "nll"
    contrast = paired(report.build_digest[:12], new, name[:12], old, metric)
    return Standing(
        champion=contrast.verdict != "worse",
        why=_words(contrast, metric),
        against=name,
        metric=metric,
        contrast=contrast,
    )


def _words(contrast: Contrast, metric: str) -> str:
    gap = contrast.difference
    what = "KL" if metric == "kl" else "negative log-likelihood (the original changed, so KL cannot be compared)"
    verdict = "no difference to" if contrast.verdict == "no difference" else f"{contrast.verdict} than"
    return f"{verdict} the champion {contrast.second}: {what} {gap.value:+.5f} [{gap.low:+.5f}, {gap.high:+.5f}]"


def evidence(report: Report, store: Store) -> Evidence:
    """Read from a report and the verdict that is in the store; Unavailable when that is gone."""
    bound = bind(Recipe.model_validate(report.recipe_document))
    outputs = {row.id: row.outputs for row in report.nodes}
    verify = next(b for b in bound if isinstance(b.node.spec, Verify))
    spec: Any = verify.node.spec

    def digest(port: str) -> str:
        node, out = verify.inputs[port]
        return outputs[node][out]

    documents = store.artifacts.load(outputs[verify.id]["verdict"]).meta["documents"]
    budget = next((b.node.spec.budget for b in bound if b.node.spec.step == "allocate"), None)
    return Evidence(digest("model"), digest("tokens"), tuple(documents), budget, spec)


def paired(first: str, new: Evidence, second: str, old: Evidence, metric: str) -> Contrast:
    """Paired comparison of two builds on the same documents, with the resamples that the new one's verify step used."""
    from steps.verify.bootstrap import difference, draw, ratio

    count_BD = draw(len(new.documents), new.verify.bootstrap, new.verify.seed)
    gap = difference(new.documents, old.documents, count_BD, metric)
    return Contrast(
        first=first,
        second=second,
        difference=gap,
        ratio=ratio(new.documents, old.documents, count_BD, metric),
        verdict="better" if gap.high < 0 else "worse" if gap.low > 0 else "no difference",
    )
