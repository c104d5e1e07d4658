"""Numbers as people read them."""

import pytest

from ui import words


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 B"), (999, "999 B"), (2_992_952, "2.99 MB"), (10_498_464, "10.5 MB"), (299_000_000, "299 MB"), (None, "—")],
)
def test_sizes_have_three_digits(count: float | None, said: str) -> None:
    assert words.size(count) == said


@pytest.mark.parametrize(
    ("value", "number", "measure"),
    [
        (0.0113, "0.0113", "0.01130"),
        (39.2561, "39.26", "39.26"),
        (-0.5, "−0.5", "−0.5000"),
        (2992952.0, "2,992,952", "2,992,952"),
        (3.1e-5, "0.000031", "0.00003100"),
    ],
)
def test_measured_values_keep_their_last_zeros(value: float, number: str, measure: str) -> None:
    assert (words.number(value), words.measure(value)) == (number, measure)


def test_a_change_below_half_a_percent_is_none() -> None:
    assert [words.percent(r) for r in (0.666, 1.004, 1.5)] == ["−33 %", "0 %", "+50 %"]


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.02, "20 ms"), (59.4, "59 s"), (59.6, "1 min 0 s"), (7261, "2 h 1 min")]
)
def test_durations_have_two_units(seconds: float, said: str) -> None:
    assert words.duration(seconds) == said


@pytest.mark.parametrize(
    ("name", "bits", "class_"),
    [
        ("int3-g64", 3, "b3"),
        ("q6_k", 6, "b6"),
        ("iq4_nl", 4, "b4"),
        ("tq1_0", 1, "b2"),
        ("f16", 16, "b16"),
        ("vq", None, "b0"),
    ],
)
def test_every_family_of_formats_has_a_colour(name: str, bits: float | None, class_: str) -> None:
    assert (words.bits_of(name), words.bits_class(name)) == (bits, class_)


def test_units_stand_in_their_block() -> None:
    assert words.place("layers.3.self_attn.qkv") == (3, "self_attn.qkv")
    assert words.place("layers.12") == (12, "block")
    assert words.place("lm_head") == (None, "lm_head")
