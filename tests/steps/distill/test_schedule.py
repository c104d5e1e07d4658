"""Which windows are trained on, at what share of the learning rate, and how much memory it takes."""

from __future__ import annotations

import itertools

import pytest
from models import tiny_value

from schemas.distill import Distill, Rates, Schedule
from schemas.errors import InputError
from steps.distill.memory import available_bytes, block_bytes, check_fits, training_bytes
from steps.distill.schedule import share, split, steps_of, windows_of


@pytest.mark.parametrize(
    ("windows", "held_out", "kept"), [(7, 24, 6), (12, 6, 6), (12, 9, 6), (40, 6, 6), (40, 9, 8), (500, 24, 24)]
)
def test_split_is_a_partition_with_both_sides(windows: int, held_out: int, kept: int) -> None:
    train, out = split(windows, held_out, seed=0)
    assert sorted(train + out) == list(range(windows))
    assert len(out) == kept
    assert split(windows, held_out, seed=0) == (train, out)


def test_every_window_is_used_once_before_any_is_used_again() -> None:
    train, out = split(26, 6, seed=1)
    used = list(itertools.chain(*(windows_of(step, 6, train) for step in range(1, 11))))
    assert len(used) == 60 and not set(used) & set(out)
    assert used[:20] == train and used[20:40] == train
    assert [len(windows_of(step, 8, [1, 2])) for step in (1, 2)] == [2, 2]


def test_a_token_budget_is_spent_in_whole_steps_and_never_exceeded() -> None:
    assert [steps_of(Distill(step="distill", tokens=t, batch=4), 16) for t in (1, 64, 127, 128)] == [1, 1, 1, 2]


@pytest.mark.parametrize("shape", ["cosine", "linear", "constant"])
def test_the_rate_warms_up_to_its_peak_and_falls(shape: str) -> None:
    rates = [share(step, 50, Schedule.model_validate({"warmup": 0.1, "shape": shape})) for step in range(1, 51)]
    assert max(rates) == rates[5] == 1 and rates[:6] == pytest.approx([n / 6 for n in range(1, 7)])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert (rates[-1] == 1) if shape == "constant" else (0 < rates[-1] < 0.03)


def test_memory_is_counted_by_hand() -> None:
    config = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 4, "intermediate_size": 8, "vocab_size": 10}
    shapes = {
        "model.embed_tokens.weight": (10, 4),
        "model.layers.0.mlp.up_proj.weight": (8, 4),
        "model.norm.weight": (4,),
    }
    meta = {"config": config, "shapes": shapes}
    activations = 2 * (16 * 4 + 4 * 8) + 7 * 10
    fixed = Distill(step="distill", rates=Rates(scales=1e-3))
    signs = Distill.model_validate({"step": "distill", "optimizer": {"kind": "sign"}})
    for spec, per_weight in ((fixed, 12), (signs, 20), (Distill(step="distill"), 28)):
        assert training_bytes(spec, meta, 5) == 4 * (40 + 32 + 4) + per_weight * 32 + 4 * 5 * activations
    by_block = 32 * (8 + 12) + 4 * (5 * (16 * 4 + 4 * 8) + 3 * 100 * 4)
    assert block_bytes(fixed, meta, 0, 5, 100) == by_block
    with pytest.raises(InputError, match=f"wanted: {by_block} bytes"):
        check_fits(by_block, by_block - 1, "tiny")
    check_fits(by_block, by_block, "tiny")
    check_fits(by_block, None, "tiny")


def test_a_tiny_model_fits_here() -> None:
    check_fits(training_bytes(Distill(step="distill"), tiny_value().meta, 64), available_bytes("cpu"), "tiny")
