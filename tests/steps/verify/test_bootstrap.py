"""The bootstrap: exact where it can be, coverage where it is a statement about chance."""

from __future__ import annotations

import math

import pytest
import torch

from schemas.errors import InputError
from steps.verify import bootstrap


def rows(kl: list[float], tokens: list[int] | None = None) -> list[dict[str, float]]:
    tokens = tokens or [10] * len(kl)
    return [{"tokens": t, "kl": k, "nll": 2 + k, "top1": 1 - k} for t, k in zip(tokens, kl, strict=True)]


def test_equal_seeds_give_equal_intervals_and_global_seeds_do_not_matter() -> None:
    torch.manual_seed(1)
    first = bootstrap.draw(20, 500, seed=3)
    torch.manual_seed(2)
    assert torch.equal(first, bootstrap.draw(20, 500, seed=3))
    assert not torch.equal(first, bootstrap.draw(20, 500, seed=4))
    assert torch.equal(first.sum(1), torch.full((501,), 20.0, dtype=torch.float64))


def test_means_are_weighted_by_tokens_in_every_resample() -> None:
    documents, count = rows([0.1, 0.2, 0.4], [1, 2, 5]), bootstrap.draw(3, 50, seed=0)
    for drawn, mean in zip(count.tolist(), bootstrap.means(count, documents, "kl").tolist(), strict=True):
        weight = [c * row["tokens"] for c, row in zip(drawn, documents, strict=True)]
        expected = sum(w * row["kl"] for w, row in zip(weight, documents, strict=True)) / sum(weight)
        assert mean == pytest.approx(expected, rel=1e-12)


def test_identical_documents_leave_no_doubt() -> None:
    found = bootstrap.measured(rows([0.25] * 8), 123, bootstrap.draw(8, 200, seed=0))
    assert found.bytes == 123
    for interval, value in ((found.kl, 0.25), (found.ppl, math.exp(2.25)), (found.top1, 0.75)):
        assert interval.value == interval.low == interval.high == pytest.approx(value)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """300 samples of 40 documents: the binomial spread of a 95 % interval's coverage is 1.3 points; 4 are allowed."""
    generator = torch.Generator().manual_seed(0)
    count, covered = bootstrap.draw(40, 400, seed=1), 0
    for _ in range(300):
        kl = (1 + 0.3 * torch.randn(40, generator=generator, dtype=torch.float64)).tolist()
        found = bootstrap.interval(bootstrap.means(count, rows(kl), "kl"))
        covered += found.low <= 1 <= found.high
    assert 0.898 < covered / 300 <= 1


def test_pairing_finds_a_small_gap_that_separate_intervals_hide() -> None:
    generator = torch.Generator().manual_seed(5)
    base = (0.1 + torch.rand(30, generator=generator)).tolist()
    first, second = rows([0.97 * k for k in base]), rows(base)
    count = bootstrap.draw(30, 1000, seed=0)
    found = bootstrap.contrast(("a", "b"), first, second, count)
    assert found.verdict == "better"
    assert bootstrap.contrast(("b", "a"), second, first, count).verdict == "worse"
    assert found.ratio.low == pytest.approx(0.97) and found.ratio.high == pytest.approx(0.97)
    assert bootstrap.measured(first, 0, count).kl.high > bootstrap.measured(second, 0, count).kl.low


def test_no_gap_is_no_difference_and_lossless_models_can_be_compared() -> None:
    count = bootstrap.draw(6, 100, seed=0)
    exact = rows([0.0] * 6)
    same = bootstrap.contrast(("a", "b"), exact, exact, count)
    assert same.verdict == "no difference" and same.ratio.value == 1
    mixed = rows([0.1, -0.1, 0.2, -0.2, 0.3, -0.3])
    assert bootstrap.contrast(("a", "b"), mixed, exact, count).verdict == "no difference"


def test_other_documents_or_tokens_are_refused() -> None:
    count = bootstrap.draw(3, 10, seed=0)
    with pytest.raises(InputError, match="different documents"):
        bootstrap.means(count, rows([0.1, 0.2]), "kl")
    with pytest.raises(InputError, match="different tokens"):
        bootstrap.difference(rows([0.1] * 3, [1, 2, 3]), rows([0.1] * 3), count)
