"""Each gate at, below and above its limit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from schemas.report import Contrast, ExpertCoverage, Interval
from schemas.verify import Gates
from steps.step import Output
from steps.verify.experts import expert_coverage
from steps.verify.gates import Facts, judge, largest_damping


def against(low: float, high: float) -> Contrast:
    gap = Interval(value=(low + high) / 2, low=low, high=high)
    return Contrast(first="allocated", second="uniform", difference=gap, ratio=gap, verdict="no difference")


FACTS = Facts(
    kl=0.1,
    actual_bytes=100,
    predicted_bytes=100,
    different_weights=(),
    damping=0.1,
    against_uniform=against(-0.3, -0.1),
    has_uniform=True,
)
GATES = Gates(max_kl=0.1, max_bytes=100, max_damping=0.1)


def coverage(fewest: int) -> ExpertCoverage:
    return ExpertCoverage(experts=4, without_tokens=int(fewest == 0), fewest=fewest, median=9, least_own=0.1)


def test_an_expert_that_saw_too_little_fails_where_that_is_asked() -> None:
    asked = Gates(min_expert_tokens=5)
    for fewest, passed in ((4, False), (5, True)):
        rows = {row.name: row for row in judge(asked, replace(FACTS, experts=coverage(fewest)))}
        assert rows["min_expert_tokens"].passed is passed and rows["min_expert_tokens"].value == fewest
    assert "min_expert_tokens" not in {row.name for row in judge(asked, FACTS)}  # a dense model has none
    assert "min_expert_tokens" not in {row.name for row in judge(GATES, replace(FACTS, experts=coverage(0)))}


def test_expert_coverage_counts_experts_not_matrices() -> None:
    def item(**members: dict[str, float]) -> Output:
        return Output({"members": {f"model.layers.0.mlp.experts.{name}": facts for name, facts in members.items()}})

    items = {
        "a": item(**{"0.gate_proj": {"tokens": 8, "own": 0.5}, "0.up_proj": {"tokens": 8, "own": 0.5}}),
        "b": item(**{"1.down_proj": {"tokens": 0, "own": 0.0}}),
        "c": Output({"members": {"model.layers.0.mlp.shared_expert.down_proj": {"tokens": 99}}}),
    }
    found = expert_coverage(items)
    assert found == ExpertCoverage(experts=2, without_tokens=1, fewest=0, median=8, least_own=0.0)
    assert expert_coverage({"c": items["c"]}) is None


def test_everything_at_its_limit_passes() -> None:
    assert all(row.passed for row in judge(GATES, FACTS)) and len(judge(GATES, FACTS)) == 6


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("max_kl", replace(FACTS, kl=0.1001)),
        ("max_bytes", replace(FACTS, actual_bytes=101, predicted_bytes=101)),
        ("size_as_predicted", replace(FACTS, actual_bytes=99)),
        ("max_damping", replace(FACTS, damping=1.0)),
        ("beats_uniform", replace(FACTS, against_uniform=against(-0.3, 0.0))),
        ("beats_uniform", replace(FACTS, against_uniform=against(0.1, 0.2))),
        ("beats_uniform", replace(FACTS, against_uniform=None)),
        ("weights_match", replace(FACTS, different_weights=tuple("abcdefg"))),
    ],
)
def test_one_thing_over_its_limit_fails_its_own_gate_only(name: str, facts: Facts) -> None:
    assert [row.name for row in judge(GATES, facts) if not row.passed] == [name]


def test_there_is_nothing_to_beat_when_no_uniform_format_fits() -> None:
    row = judge(GATES, replace(FACTS, against_uniform=None, has_uniform=False))[-1]
    assert (row.name, row.value, row.passed) == ("beats_uniform", None, True)


def test_gates_that_are_not_asked_for_have_no_row() -> None:
    assert [row.name for row in judge(Gates(beats_uniform=False), FACTS)] == [
        "weights_match",
        "size_as_predicted",
        "max_damping",
    ]


def test_a_failed_match_names_the_first_tensors() -> None:
    row = judge(GATES, replace(FACTS, different_weights=tuple("abcdefg")))[0]
    assert row.value == "7 different: a, b, c, d, e, ..."


def test_the_largest_damping_is_over_all_members_and_trained_norms_have_none() -> None:
    items = {"u": {"a": {"damping": 0.01}, "b": {"damping": 0.1}}, "v": {"c": {"damping": 0.0}}, "w": {"d": {}}}
    children = {unit: Output({"members": members}) for unit, members in items.items()}
    assert largest_damping({**children, "norms": Output()}) == 0.1
    assert largest_damping({}) == 0.0
