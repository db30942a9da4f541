"""Values in errors: as they are where short, their ends where long, at no cost of their length."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from graphs.shown import cut, shown


@pytest.mark.parametrize(
    "value",
    ["", "a'b", "\ud800", 5, -7, 10**99, 1.5, True, None, b"\xff", [1, "a"], (2,), {"b": 1, "a": [2]}],
)
def test_short_values_are_as_they_are(value: Any) -> None:
    assert shown(value) == repr(value)


LONG = [
    "x" * 10**7,
    b"x" * 10**7,
    bytearray(10**6),
    list(range(10**6)),
    tuple(range(10**6)),
    set(range(10**6)),
    dict.fromkeys(range(10**6), "y" * 1000),
    {"a": [["z" * 10**6] * 50] * 50, "k" * 10**6: 1},
    np.arange(10**6),
    10**5000,
    -(10**5000),
    "é\n" * 10**6,
    ["a" * 999] * 999,
]


@pytest.mark.parametrize("value", LONG, ids=lambda value: type(value).__name__)
def test_long_values_show_their_ends(value: Any) -> None:
    tracemalloc.start()
    text = shown(value)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(text) <= 300
    assert "\n" not in text
    assert peak < 10**5 or isinstance(value, set)  # a set of numbers is sorted


def test_a_long_string_begins_and_ends_as_it_does() -> None:
    text = shown("begin" + "x" * 10**6 + "end")
    assert text.startswith("'beginx")
    assert "..." in text
    assert text.endswith("xend'")


def test_a_number_of_many_digits_is_told_by_its_bits() -> None:
    assert shown(10**5000) == "a whole number of 16610 bits"


def test_what_cannot_be_represented() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError

    assert "Broken" in shown(Broken())


def test_messages_are_cut() -> None:
    assert cut(ValueError("short")) == "short"
    assert cut("x" * 501) == "x" * 500 + " …"
