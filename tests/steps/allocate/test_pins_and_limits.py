"""What is refused before anything is solved, in words a user can act on."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from allocation import FORMATS, model
from pydantic import ValidationError

from schemas.allocate import Pin
from schemas.budget import Budget, Latency, PartLimit, Timing
from schemas.errors import InputError
from schemas.format import Format, read_format
from steps.allocate.limits import achievable, byte_limits, check_budget, extremes
from steps.allocate.pins import check_pins, matching
from steps.allocate.preflight import check
from steps.allocate.sizing import Sizing, check_group_sizes, exact_floor
from steps.model.offers import Offer
from steps.model.structure import units

META = model().meta
UNITS = units(META["config"], META["shapes"])


def fmt(name: str) -> Format:
    return read_format(name)


OFFERED = [fmt(name) for name in FORMATS]
G_FORMATS = [fmt("int4-g64"), fmt("int4-g32"), fmt("int4-g128")]


def pin(units: str, **fields: Any) -> Pin:
    return Pin.model_validate({"units": units, **fields})


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("layers.0.mlp.down", ["layers.0.mlp.down"]),
        ("*.mlp.down", ["layers.0.mlp.down", "layers.1.mlp.down"]),
        ("model.layers.1.self_attn.k_proj", ["layers.1.self_attn.qkv"]),
        (r"re:layers\.[01]\.self_attn\.(qkv|o)", [u.name for u in UNITS if "self_attn" in u.name]),
        (r"re:.*up_proj", ["layers.0.mlp.gate_up", "layers.1.mlp.gate_up"]),
    ],
)
def test_patterns_match_units_and_members(pattern: str, found: list[str]) -> None:
    assert [u.name for u in matching(pattern, UNITS, "pins")] == found


@pytest.mark.parametrize("pattern", ["layers.0.mlp.dwon", "down_proj", "re:down_proj", "layers.7.*", "re:lm_head"])
def test_a_pattern_that_matches_nothing_lists_near_matches(pattern: str) -> None:
    with pytest.raises(InputError, match="matches no unit") as error:
        check_pins(UNITS, OFFERED, [pin(pattern, max_bits=4)])
    assert "pins[0].units" in error.value.where and error.value.got == pattern
    wanted = error.value.wanted
    assert "down" in wanted if "dwon" in pattern or "down" in pattern else "layers." in wanted


def test_pins_combine() -> None:
    pins = [
        pin("*.down", formats=["int4-g64", "int6-g64", "int8-row"]),
        pin("layers.0.*", max_bits=6, exclude=["int4-g64"]),
    ]
    left = check_pins(UNITS, OFFERED, pins)
    assert left["layers.0.mlp.down"] == ("int6-g64",)
    assert left["layers.1.mlp.down"] == ("int4-g64", "int6-g64", "int8-row")
    assert left["layers.0.mlp.gate_up"] == ("int2-g32", "int3-g32", "int3-g64", "int4-g32", "int6-g64")
    assert left["layers.1.mlp.gate_up"] == FORMATS
    assert check_pins(UNITS, OFFERED, [pin("*", min_bits=8)])["layers.0.self_attn.o"] == ("int8-row",)


def test_contradicting_pins_name_the_unit_and_both() -> None:
    with pytest.raises(InputError, match="pins leave a unit no format") as error:
        check_pins(UNITS, OFFERED, [pin("*.down", formats=["int8-row"]), pin("layers.1.*", max_bits=4)])
    assert error.value.where == "layers.1.mlp.down"
    assert "pins[0] (*.down)" in error.value.got and "pins[1] (layers.1.*)" in error.value.got


@pytest.mark.parametrize("field", ["formats", "exclude"])
def test_a_pin_to_a_format_that_is_not_offered(field: str) -> None:
    with pytest.raises(InputError, match="not offered") as error:
        check_pins(UNITS, OFFERED, [pin("*", **{field: ["int5-g64"]})])
    assert error.value.where == f"pins[0].{field}" and "int6-g64" in error.value.wanted


@pytest.mark.parametrize("bad", [{"units": "*"}, {"units": "re:(", "max_bits": 4}, {"units": "", "max_bits": 4}])
def test_pins_that_say_nothing_or_cannot_be_compiled(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Pin.model_validate(bad)


def test_group_sizes_name_the_linears_and_what_fits() -> None:
    shapes = META["shapes"] | {"model.layers.1.mlp.down_proj.weight": [128, 96]}
    with pytest.raises(InputError, match="does not divide") as error:
        check_group_sizes((u, G_FORMATS) for u in units(META["config"], shapes))
    assert "model.layers.1.mlp.down_proj (96 inputs)" in error.value.got
    assert "int4-g64" in error.value.got and "int4-g128" in error.value.got
    assert error.value.wanted.startswith("g32, row")
    check_group_sizes((u, OFFERED) for u in UNITS)


def sizing(names: tuple[str, ...] = FORMATS) -> Sizing:
    shapes = {n: tuple(s) for n, s in META["shapes"].items()}
    offered = {name: fmt(name) for name in names}
    return Sizing(tuple(UNITS), offered, "compressed-tensors", META["config"], shapes, META["dtypes"])


EVERY = {u.name: FORMATS for u in UNITS}


def test_the_range_is_that_of_the_extreme_plans() -> None:
    size, (low, high) = sizing(), extremes(sizing(), EVERY)
    assert set(low.values()) == {"int2-g32"} and set(high.values()) == {"int8-row"}
    reach = achievable(size, EVERY)
    assert reach.file_bytes == (size.file(low), size.file(high))
    assert reach.linear_bits_per_weight[0] == 8 * size.linears(low) / size.linear_weights
    assert reach.linear_bits_per_weight[0] > 2.5  # 2 bits, a bf16 scale per 32, and 16 bytes of shape per linear


def test_a_budget_at_the_edge_of_the_range_is_met() -> None:
    reach = achievable(sizing(), EVERY)
    check_budget(Budget(bytes=reach.file_bytes[0]), sizing(), EVERY)
    with pytest.raises(InputError, match="no plan meets") as error:
        check_budget(Budget(bytes=reach.file_bytes[0] - 1), sizing(), EVERY)
    assert str(reach.file_bytes[0]) in error.value.wanted and str(reach.file_bytes[1]) in error.value.wanted


@pytest.mark.parametrize("over", ["linears", "file"])
def test_an_infeasible_number_of_bits_names_the_range_in_bits(over: Any) -> None:
    with pytest.raises(InputError, match="no plan meets") as error:
        check_budget(Budget(bits_per_weight=2.2, over=over), sizing(), EVERY)
    assert error.value.where == "budget.bits_per_weight"
    assert error.value.got == f"2.2 over {over}"
    shown = float(error.value.wanted.removeprefix("at least ").split()[0])
    check_budget(Budget(bits_per_weight=shown, over=over), sizing(), EVERY)  # what is offered can be asked for


def test_an_error_says_when_pins_are_to_blame() -> None:
    pinned = check_pins(UNITS, OFFERED, [pin("*", min_bits=6)])
    with pytest.raises(InputError, match="loosen the pins"):
        check_budget(Budget(bits_per_weight=4.0), sizing(), pinned)
    with pytest.raises(InputError, match="loosen the pins"):
        check_budget(Budget(parts=(PartLimit(units="layers.0.*", bytes=70_000),)), sizing(), pinned)


def test_budgets_are_read_as_written() -> None:
    assert exact_floor(4.3, 80) == 43  # 4.3 * 80 / 8 is 42.99999999999999 in floats
    assert exact_floor(3.26, 1000) == 407
    limits = byte_limits(Budget(bits_per_weight=4, over="file", bytes=123_456), sizing())
    assert [limit.limit for limit in limits] == [sizing().all_weights // 2, 123_456]


def test_a_part_that_cannot_fit_and_a_part_of_nothing() -> None:
    with pytest.raises(InputError, match="no plan meets") as error:
        check_budget(Budget(parts=(PartLimit(units="layers.1.*", bytes=1000),)), sizing(), EVERY)
    assert error.value.where == "budget.parts[0] (layers.1.*)" and "bytes" in error.value.wanted
    with pytest.raises(InputError, match="matches no unit"):
        check_budget(Budget(parts=(PartLimit(units="layers.9.*", bytes=10**9),)), sizing(), EVERY)


def timings(names: tuple[str, ...]) -> tuple[Timing, ...]:
    shapes = dict.fromkeys(s for u in UNITS for s in u.shapes)
    return tuple(Timing(shape=s, format=fmt(n), microseconds=s[0] * fmt(n).bits / 100) for s in shapes for n in names)


def test_latency_needs_a_complete_table_and_a_limit_in_reach() -> None:
    with pytest.raises(InputError, match="latency table has gaps") as error:
        check_budget(Budget(latency=Latency(microseconds=1e6, timings=timings(FORMATS[1:]))), sizing(), EVERY)
    assert "128x128 in int2-g32" in error.value.got
    with pytest.raises(InputError, match="no plan meets") as error:
        check_budget(Budget(latency=Latency(microseconds=1, timings=timings(FORMATS))), sizing(), EVERY)
    assert "microseconds" in error.value.wanted


def test_a_budget_says_something() -> None:
    with pytest.raises(ValidationError, match="at least one of"):
        Budget()


def test_preflight_does_it_all() -> None:
    offered = [Offer(u, tuple(OFFERED)) for u in UNITS]
    arguments = (offered, "compressed-tensors", META["config"], META["shapes"], META["dtypes"])
    reach = check(*arguments, Budget(bits_per_weight=3.3), [pin("*.down", min_bits=4)])
    assert 2.5 < reach.linear_bits_per_weight[0] < 3.3 < reach.linear_bits_per_weight[1]
    with pytest.raises(InputError, match="no plan meets"):
        check(*arguments, Budget(bits_per_weight=2.6), [pin("*.down", min_bits=4)])


def test_no_torch_before_it_is_needed() -> None:
    code = (
        "import sys; import steps.allocate.preflight, steps.allocate.run, steps.allocate.select;"
        "sys.exit('torch' in sys.modules or 'pulp' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
