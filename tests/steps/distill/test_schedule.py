"""Which windows are trained on, with which learning rate, and how much memory it takes."""

from __future__ import annotations

import itertools

import pytest
from models import tiny_value

from schemas.errors import InputError
from steps.distill.memory import available_bytes, check_fits, training_bytes
from steps.distill.schedule import learning_rate, split, training_batches


@pytest.mark.parametrize(("windows", "held_out", "kept"), [(2, 0.01, 1), (2, 0.99, 1), (10, 0.2, 2), (7, 0.5, 4)])
def test_split_is_a_partition_with_both_sides(windows: int, held_out: float, kept: int) -> None:
    train, out = split(windows, held_out, seed=0)
    assert sorted(train + out) == list(range(windows))
    assert len(out) == kept
    assert split(windows, held_out, seed=0) == (train, out)


def test_every_window_is_used_once_before_any_is_used_again() -> None:
    train, out = split(25, 0.2, seed=1)
    used = list(itertools.chain(*training_batches(train, 6, 10)))
    assert len(used) == 60 and not set(used) & set(out)
    assert used[:20] == train and used[20:40] == train
    assert [len(batch) for batch in training_batches([1, 2], 8, 3)] == [2, 2, 2]


def test_learning_rate_warms_up_to_its_peak_and_falls_to_nothing() -> None:
    rates = [learning_rate(step, 50, 5, 1e-3) for step in range(1, 51)]
    assert max(rates) == rates[5] == 1e-3
    assert rates[:6] == sorted(rates[:6]) and rates[5:] == sorted(rates[5:], reverse=True)
    assert 0 < rates[-1] < 2e-6
    assert [learning_rate(step, 2, 5, 1.0) for step in (1, 2)] == [1 / 6, 2 / 6]


def test_memory_is_counted_by_hand() -> None:
    config = {"num_hidden_layers": 2, "hidden_size": 4, "intermediate_size": 8, "vocab_size": 10}
    shapes = {
        "model.embed_tokens.weight": (10, 4),
        "model.layers.0.mlp.up_proj.weight": (8, 4),
        "model.norm.weight": (4,),
    }
    by_hand = 4 * (40 + 32 + 4) + 10 * 32 + 4 * 5 * (2 * (16 * 4 + 4 * 8) + 4 * 10)
    assert training_bytes(config, shapes, 5) == by_hand
    with pytest.raises(InputError, match=f"wanted: {by_hand} bytes"):
        check_fits(by_hand, by_hand - 1, "tiny")
    check_fits(by_hand, by_hand, "tiny")
    check_fits(by_hand, None, "tiny")


def test_a_tiny_model_fits_here() -> None:
    model = tiny_value()
    check_fits(training_bytes(model.meta["config"], model.meta["shapes"], 64), available_bytes("cpu"), "tiny")
