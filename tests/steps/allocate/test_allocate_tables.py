"""Cost tables that the allocate step refuses, repairs, or takes as they are."""

from __future__ import annotations

from typing import Any

import pytest
from allocation import UNIT, allocated, changed, model, step_inputs

from schemas.errors import InputError
from steps.step import Output


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.5])
def test_bad_scores_name_the_unit(value: float) -> None:
    def spoil(name: str, meta: dict[str, Any]) -> None:
        if name == f"{UNIT}/int3-g64":
            meta["score"] = value

    with pytest.raises(InputError, match="score") as error:
        allocated(changed(spoil))
    assert error.value.where == UNIT and "int3-g64" in error.value.got


def test_a_unit_whose_scores_are_all_zero() -> None:
    def silence(name: str, meta: dict[str, Any]) -> None:
        if name.startswith(UNIT):
            meta["score"] = 0.0

    with pytest.raises(InputError, match="all scores of a unit are zero") as error:
        allocated(changed(silence))
    assert error.value.where == UNIT


def test_noise_below_zero_is_kept_raw_and_noted() -> None:
    def dip(name: str, meta: dict[str, Any]) -> None:
        if name.endswith("int8-row"):
            meta["score"] = -1e-7

    meta = allocated(changed(dip), {"bits_per_weight": 16})
    assert set(meta["plan"].values()) == {"int8-row"}
    assert meta["predicted_kl"]["plan"] == pytest.approx(-8e-7)
    assert meta["certificate"]["objective"] == 0 == meta["certificate"]["gap"]
    assert "negative scores" in meta["certificate"]["notes"][0]


def test_tables_that_do_not_belong_together() -> None:
    inputs = step_inputs()
    fewer = Output(children={k: v for k, v in inputs["scores"].children.items() if k != f"{UNIT}/int8-row"})
    with pytest.raises(InputError, match="not of the same units"):
        allocated(inputs | {"scores": fewer})
    with pytest.raises(InputError, match="the model has no such unit"):
        allocated(inputs | {"model": model(blocks=1)})

    def other_shape(name: str, meta: dict[str, Any]) -> None:
        meta["members"] = {m: v | {"shape": [1, 2]} for m, v in meta["members"].items()}

    with pytest.raises(InputError, match="other linears"):
        allocated(changed(other_shape, "candidates"))

    def other_documents(name: str, meta: dict[str, Any]) -> None:
        if name == f"{UNIT}/int8-row":
            meta["weights"] = meta["weights"][:-1]

    with pytest.raises(InputError, match="different documents"):
        allocated(changed(other_documents))


def test_a_unit_may_lack_a_candidate() -> None:
    inputs = step_inputs()
    for port in ("scores", "candidates"):
        kept = {k: v for k, v in inputs[port].children.items() if k != f"{UNIT}/int3-g64"}
        inputs[port] = Output(children=kept)
    meta = allocated(inputs)
    assert meta["plan"][UNIT] != "int3-g64"
    assert meta["uniform_format"] != "int3-g64" or meta["uniform"][UNIT] != "int3-g64"


def test_a_candidate_under_another_name_is_refused() -> None:
    """As when a unit is listed twice: the second entry says it is the first."""

    def twice(name: str, meta: dict[str, Any]) -> None:
        if name == "layers.1.mlp.down/int3-g32":
            meta["unit"] = UNIT

    with pytest.raises(InputError, match="which is there as well"):
        allocated(changed(twice, "candidates"))
