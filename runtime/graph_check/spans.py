"""What the numbers in a tensor lie between, as far as shapes follow from them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from runtime.graph_check.sizes import Dim, at_least, is_simple


class Span(NamedTuple):
    """All numbers from `low` to `high`; `None` where nothing is known."""

    low: Dim | None
    high: Dim | None

    @property
    def exact(self) -> Dim | None:
        """The number, where it is one."""
        return self.low if self.low == self.high else None


UNKNOWN = Span(None, None)
FALSE, TRUE, EITHER = Span(0, 0), Span(1, 1), Span(0, 1)


def only(value: Dim) -> Span:
    """One number."""
    return Span(value, value)


def hull(spans: Iterable[Span]) -> Span:
    """A span around several."""
    found = list(spans)
    low, high = found[0]
    for span in found[1:]:
        low, high = _lower(low, span.low), _higher(high, span.high)
    return Span(low, high)


def _lower(a: Dim | None, b: Dim | None) -> Dim | None:
    """What is below both."""
    if a is None or b is None:
        return None
    if at_least(b, a):
        return a
    if at_least(a, b):
        return b
    return next((bound for bound in (1, 0) if at_least(a, bound) and at_least(b, bound)), None)


def _higher(a: Dim | None, b: Dim | None) -> Dim | None:
    """What is above both."""
    if a is None or b is None:
        return None
    return a if at_least(a, b) else b if at_least(b, a) else None


def _kept(low: Dim | None, high: Dim | None) -> Span:
    """A span of numbers that may be too large for their dtype, and become any others then."""
    if (low is None or is_simple(low)) and (high is None or is_simple(high)):
        return Span(low, high)
    return UNKNOWN


def add(a: Span, b: Span) -> Span:
    """Sums."""
    low = None if a.low is None or b.low is None else a.low + b.low
    return _kept(low, None if a.high is None or b.high is None else a.high + b.high)


def subtract(a: Span, b: Span) -> Span:
    """Differences."""
    low = None if a.low is None or b.high is None else a.low - b.high
    return _kept(low, None if a.high is None or b.low is None else a.high - b.low)


def multiply(a: Span, b: Span) -> Span:
    """Products; nothing is known of those of numbers that may be below 0."""
    if FALSE in (a, b):
        return FALSE
    if a.low is None or b.low is None or not (at_least(a.low, 0) and at_least(b.low, 0)):
        return UNKNOWN
    return _kept(a.low * b.low, None if a.high is None or b.high is None else a.high * b.high)


def smaller(a: Span, b: Span) -> Span:
    """The smaller of two numbers."""
    if is_below(a, b):
        return a
    if is_below(b, a):
        return b
    highs = [high for high in (b.high, a.high) if high is not None]
    if len(highs) == 2 and at_least(highs[0], highs[1]):
        highs.reverse()
    return Span(_lower(a.low, b.low), highs[0] if highs else None)


def greater(a: Span, b: Span) -> Span:
    """The greater of two numbers."""
    if is_below(a, b):
        return b
    if is_below(b, a):
        return a
    lows = [low for low in (b.low, a.low) if low is not None]
    if len(lows) == 2 and at_least(lows[1], lows[0]):
        lows.reverse()
    return Span(lows[0] if lows else None, _higher(a.high, b.high))


def is_below(a: Span, b: Span) -> bool:
    """Whether no number of one is above any of the other."""
    return a.high is not None and b.low is not None and at_least(b.low, a.high)


def less(a: Span, b: Span) -> Span:
    """Whether one number is less than another."""
    if is_below(b, a):
        return FALSE
    return TRUE if is_below(add(a, TRUE), b) else EITHER


def less_or_equal(a: Span, b: Span) -> Span:
    """Whether one number is at most another."""
    return TRUE if is_below(a, b) else invert(less(b, a))


def equal(a: Span, b: Span) -> Span:
    """Whether two numbers are the same."""
    if a.exact is not None and a.exact == b.exact:
        return TRUE
    return FALSE if TRUE in (less(a, b), less(b, a)) else EITHER


def both(a: Span, b: Span) -> Span:
    """Whether two things are true."""
    return multiply(a, b)


def invert(a: Span) -> Span:
    """Whether something is not true."""
    return subtract(TRUE, a)


def choose(condition: Span, a: Span, b: Span) -> Span:
    """One of two numbers."""
    if condition.exact is None:
        return hull((a, b))
    return a if condition == TRUE else b
