"""Sizes, whole numbers and durations, in all forms that PBS accepts and prints."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magrathea.pbs_text.amounts import duration_s, size_bytes, whole_mib, whole_number

UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40, "p": 2**50}


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize(("end", "factor"), [("", 1), ("b", 1), ("w", 8)])
@pytest.mark.parametrize(("unit", "scale"), UNITS.items())
def test_each_unit_with_b_and_w_and_neither_in_either_case(
    unit: str, scale: int, end: str, factor: int, upper: bool
) -> None:
    text = "3" + unit + end
    assert size_bytes(text.upper() if upper else text) == 3 * scale * factor


@pytest.mark.parametrize(
    "text",
    [
        "",
        "b",
        "gb",
        "1.5gb",
        "-1",
        "+1",
        "10mbb",
        "1bw",
        "1bk",
        "1 gb",
        " 1gb",
        "1gb ",
        "0x10",
        "1e3",
        "1_000",
        "٣",
        "1\u212a",  # the Kelvin sign becomes a k in lower case
    ],
)
def test_sizes_that_pbs_refuses_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="size"):
        size_bytes(text)


def test_bytes_become_whole_mib_that_hold_them() -> None:
    assert [whole_mib(size) for size in (0, 1, 2**20, 2**20 + 1)] == [0, 1, 1, 2]


@pytest.mark.parametrize("text", ["", " 1", "+1", "-1", "1e0", "1x", "1_0", "٣"])
def test_texts_that_are_no_whole_number_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="whole number"):
        whole_number(text)
    assert whole_number("007") == 7


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("90", 90),
        ("1:30", 90),
        ("00:01:30", 90),
        ("100:00:00", 360000),
        ("1.4", 1),
        ("1.5", 2),
        ("0:01.49", 1),
    ],
)
def test_durations(text: str, seconds: int) -> None:
    assert duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", ":", "1:", ":1", "1:2:3:4", "1.x", "a", "-1", "1:-2"])
def test_durations_that_pbs_refuses_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"duration|whole number"):
        duration_s(text)


@given(st.text(max_size=8), st.sampled_from([size_bytes, whole_number, duration_s]))
def test_any_text_is_an_amount_or_a_value_error(text: str, amount: Callable[[str], int]) -> None:
    try:
        assert amount(text) >= 0
    except ValueError:
        return
    assert text.isascii()
