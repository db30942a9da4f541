"""Sizes that a run decides: arithmetic, and what is proven of them."""

from __future__ import annotations

import pytest

from runtime.graph_check.sizes import (
    BATCH,
    CAPACITY,
    SEQUENCE,
    Dim,
    at_least,
    count,
    is_simple,
    largest,
    quotient,
    symbol,
)

B, S, C = BATCH, SEQUENCE, CAPACITY


def test_arithmetic() -> None:
    assert B * S == S * B
    assert B * S * 4 - 4 * (S * B) == 0
    assert (B + 1) * (B - 1) + 1 == B * B
    assert 3 - B + B == 3
    assert 2 * B != B + 1
    assert {B * S: 1}[S * B] == 1
    assert count((B, 4, S, 8)) == 32 * B * S
    assert str(count((B, 4)) + 1) == "4*batch + 1"
    assert str(B * S) == "batch*sequence"


@pytest.mark.parametrize(
    ("total", "part", "expected"),
    [
        (12, 4, 3), (12, 5, None), (12, 0, None), (32 * B * S, 32, B * S), (32 * B * S, B, 32 * S),
        (32 * B * S, 64, None), (32 * B * S, C, None), (32 * B * S, 32 * B * S, 1), (12, B, None),
        (B * S, B * B, None), (B + 1, B, None), (B * B, B, B), (4 * B, 0, None),
    ],
)  # fmt: skip
def test_quotients(total: Dim, part: Dim, expected: Dim | None) -> None:
    assert quotient(total, part) == expected


def test_what_is_proven() -> None:
    assert at_least(B, 1)
    assert not at_least(B, 2)
    assert at_least(B * S, S)
    assert at_least(B * S, B + S - 1)
    assert not at_least(B, S)
    assert not at_least(S, B)
    assert at_least(B * S - 1, (B - 1) * S + S - 1)
    assert not at_least(B * S - 2, (B - 1) * S + S - 1)
    assert at_least(3, 3)
    assert not at_least(2, 3)


def test_a_size_of_its_own_has_a_bound() -> None:
    used = symbol("used", C)
    other = symbol("used", C)
    assert used != other
    assert at_least(C, used)
    assert at_least(used, 1)
    assert not at_least(used, C)
    assert not at_least(used, other)
    assert largest(4 * B * S * used) == 4 * B * S * C
    assert largest(B - used) == B - 1
    assert at_least(C * C, used * used)
    assert largest(7) == 7


def test_what_32_bits_hold() -> None:
    for value in (0, 2**31 - 1, -(2**31 - 1), B * S, B * S + C - 1, B - C):
        assert is_simple(value)
    for value in (2**31, -(2**31), 2 * B, B * S * C, B + B, B + S + C + B * S + 1):
        assert not is_simple(value)
