"""What stop strings may be, and cutting a finished text."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.engine.text.stop_strings import (
    MAX_STOP_CHARACTERS,
    MAX_STOPS,
    StopStrings,
    cut_at_stop,
    read_stops,
)


@pytest.mark.parametrize(
    ("value", "stops"),
    [
        (None, ()),
        ("\n\n", ("\n\n",)),
        ([], ()),
        (["a", "é"], ("a", "é")),
        (("a",), ("a",)),
        (["x" * MAX_STOP_CHARACTERS] * MAX_STOPS, ("x" * MAX_STOP_CHARACTERS,) * MAX_STOPS),
    ],
)
def test_what_callers_give(value: Any, stops: tuple[str, ...]) -> None:
    assert read_stops(value) == stops


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("", "strings in stop must have 1 to 256 characters, got '' with 0"),
        (["a", ""], "strings in stop must have 1 to 256 characters, got '' with 0"),
        ("x" * 257, "must have 1 to 256 characters, got 'x.*' with 257"),
        (["a"] * 33, "stop may have at most 32 strings, got 33"),
        (["a", 5], "stop must be a string or a list of strings, got 5 in it"),
        (5, "stop must be a string or a list of strings, got 5"),
        (b"ab", "stop must be a string or a list of strings, got b'ab'"),
        ("\ufffd", r"without U\+FFFD or half of a surrogate pair"),
        ("a\ud83d", r"without U\+FFFD or half of a surrogate pair"),
    ],
)
def test_what_is_refused(value: Any, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        read_stops(value)


def test_the_error_names_the_field() -> None:
    with pytest.raises(ValueError, match="strings in until must have"):
        read_stops("", "until")


@pytest.mark.parametrize("include", [False, True])
def test_a_finished_text_is_cut(include: bool) -> None:
    def cut(text: str, *stops: str) -> tuple[str, str | None]:
        return cut_at_stop(text, StopStrings(stops, include=include))

    assert cut("abc") == ("abc", None)
    assert cut("abc", "x") == ("abc", None)
    assert cut("abcabc", "c", "b") == ("ab" if include else "a", "b")
    assert cut("abcd", "abcd", "bc") == ("abc" if include else "a", "bc")
    assert cut("abc", "bc", "abc") == ("abc" if include else "a", "bc")
