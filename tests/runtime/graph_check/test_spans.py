"""What numbers lie between, after each operation."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from runtime.graph_check import spans
from runtime.graph_check.sizes import BATCH, CAPACITY, SEQUENCE
from runtime.graph_check.spans import EITHER, FALSE, TRUE, UNKNOWN, Span, only

B, S, C = BATCH, SEQUENCE, CAPACITY
RANGES = [(low, high) for low in range(-2, 3) for high in range(low, 3)]
OPERATIONS: list[tuple[Callable[[Span, Span], Span], Callable[[int, int], int]]] = [
    (spans.add, lambda a, b: a + b),
    (spans.subtract, lambda a, b: a - b),
    (spans.multiply, lambda a, b: a * b),
    (spans.smaller, min),
    (spans.greater, max),
    (spans.less, lambda a, b: a < b),
    (spans.less_or_equal, lambda a, b: a <= b),
    (spans.equal, lambda a, b: a == b),
]


@pytest.mark.parametrize(("operation", "function"), OPERATIONS)
def test_all_results_are_in_the_span(
    operation: Callable[[Span, Span], Span], function: Callable[[int, int], int]
) -> None:
    for a, b in itertools.product(RANGES, RANGES):
        low, high = operation(Span(*a), Span(*b))
        for x, y in itertools.product(range(a[0], a[1] + 1), range(b[0], b[1] + 1)):
            result = function(x, y)
            assert low is None or low <= result, (a, b)
            assert high is None or result <= high, (a, b)


@pytest.mark.parametrize(("operation", "function"), OPERATIONS)
def test_of_exact_numbers_the_result_is_exact(
    operation: Callable[[Span, Span], Span], function: Callable[[int, int], int]
) -> None:
    for a, b in itertools.product(range(4), range(4)):
        assert operation(only(a), only(b)) == only(int(function(a, b))), (a, b)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (spans.smaller(Span(S, C + S), only(C)), Span(1, C)),
        (spans.smaller(Span(None, None), only(63)), Span(None, 63)),
        (spans.smaller(Span(0, None), Span(0, C - 1)), Span(0, C - 1)),
        (spans.greater(Span(-1, S - 1), only(0)), Span(0, S - 1)),
        (spans.greater(only(B), only(-(10**9))), only(B)),
        (spans.greater(Span(None, None), only(0)), Span(0, None)),
        (spans.less(Span(0, B * S - 1), only(0)), FALSE),
        (spans.less(Span(0, 5), Span(5, 6)), EITHER),
        (spans.less(Span(0, 4), Span(5, 6)), TRUE),
        (spans.less(UNKNOWN, only(0)), EITHER),
        (spans.less_or_equal(Span(0, 4), Span(4, 6)), TRUE),
        (spans.less_or_equal(only(B), only(0)), FALSE),
        (spans.equal(only(B), only(S)), EITHER),
        (spans.equal(only(B), only(0)), FALSE),
        (spans.both(EITHER, FALSE), FALSE),
        (spans.both(UNKNOWN, FALSE), FALSE),
        (spans.both(TRUE, EITHER), EITHER),
        (spans.invert(FALSE), TRUE),
        (spans.invert(EITHER), EITHER),
        (spans.invert(UNKNOWN), UNKNOWN),
        (spans.choose(TRUE, only(1), only(B)), only(1)),
        (spans.choose(FALSE, only(1), only(B)), only(B)),
        (spans.choose(EITHER, only(1), only(B)), Span(1, B)),
        (spans.choose(UNKNOWN, only(B), only(S)), Span(1, None)),
        (spans.multiply(UNKNOWN, only(0)), only(0)),
        (spans.multiply(Span(0, None), Span(0, B)), Span(0, None)),
        (spans.multiply(Span(0, B - 1), only(S)), Span(0, B * S - S)),
        (spans.multiply(Span(-1, 2), Span(0, 2)), UNKNOWN),
        (spans.add(Span(None, 1), Span(1, 1)), Span(None, 2)),
        (spans.subtract(Span(0, None), Span(1, 2)), Span(-2, None)),
    ],
)
def test_of_sizes(found: Span, expected: Span) -> None:
    assert found == expected


def test_numbers_that_32_bits_may_not_hold_are_unknown() -> None:
    assert spans.add(only(2**31 - 1), only(0)) == only(2**31 - 1)
    assert spans.add(only(2**31 - 1), only(1)) == UNKNOWN
    assert spans.subtract(only(-(2**31 - 1)), only(1)) == UNKNOWN
    assert spans.multiply(only(2**16), only(2**16)) == UNKNOWN
    assert spans.add(only(B), only(B)) == UNKNOWN
    assert spans.multiply(only(B), only(1000)) == UNKNOWN


def test_a_hull() -> None:
    assert spans.hull([only(1)]) == only(1)
    assert spans.hull([only(3), only(-1), only(2)]) == Span(-1, 3)
    assert spans.hull([only(B), only(1)]) == Span(1, B)
    assert spans.hull([only(B), UNKNOWN]) == UNKNOWN
    assert (only(B).exact, Span(0, B).exact, UNKNOWN.exact) == (B, None, None)
