"""Rules of the standard operators that compute element by element, or of a row of elements."""

from __future__ import annotations

from collections.abc import Callable

from runtime.graph_check import spans
from runtime.graph_check.shape_rules import INDICES, broadcast
from runtime.graph_check.sizes import at_least, count, largest, symbol
from runtime.graph_check.spans import UNKNOWN, Span
from runtime.graph_check.values import Node, Value

FLOATS = ("float32", "float16", "bfloat16")
NUMBERS = (*FLOATS, *INDICES)

Rule = Callable[[Node], list[Value]]


def _check_dtype(node: Node, value: Value, allowed: tuple[str, ...]) -> None:
    if value.dtype not in allowed:
        node.refuse(f"it is computed of {', '.join(allowed)}")


def _combined(
    node: Node, a: Value, b: Value, dtypes: tuple[str, ...], combine: Callable[[Span, Span], Span]
) -> Value:
    """What is made of the elements of two values."""
    _check_dtype(node, a, dtypes)
    node.require(a.dtype == b.dtype, "the dtypes do not agree")
    made = broadcast(node, a.shape, b.shape)
    return Value(a.dtype, made, _zipped(a, b, combine))


def _zipped(a: Value, b: Value, combine: Callable[[Span, Span], Span]) -> tuple[Span, ...]:
    first, second = a.spans, b.spans
    length = max(len(first), len(second))
    left = first if len(first) == length else first * length
    right = second if len(second) == length else second * length
    return tuple(map(combine, left, right))


def arithmetic(combine: Callable[[Span, Span], Span]) -> Rule:
    """Sums and the like of two values; of floats nothing is known, as they are rounded."""

    def rule(node: Node) -> list[Value]:
        a, b = node.input(0), node.input(1)
        exact = a.dtype in INDICES
        return [_combined(node, a, b, NUMBERS, combine if exact else lambda *_: UNKNOWN)]

    return rule


def power(node: Node) -> list[Value]:
    """A power of each element."""
    a, b = node.input(0), node.input(1)
    node.require(b.initializer and not b.shape, "the exponent is no constant")
    return [_combined(node, a, b, FLOATS, lambda *_: UNKNOWN)]


def greater(node: Node) -> list[Value]:
    """The greater of two values."""
    return [_combined(node, node.input(0), node.input(1), ("float32", *INDICES), spans.greater)]


def smaller(node: Node) -> list[Value]:
    """The smaller of two values; a single one that cannot be told is a size of its own."""
    found = _combined(node, node.input(0), node.input(1), INDICES, spans.smaller)
    low, high = found.span
    single = count(found.shape) == 1 and low != high
    if single and low is not None and high is not None and at_least(low, 1):
        most = largest(high)
        if isinstance(most, int) or len(most.terms) == 1:
            found.spans = (spans.only(symbol(f"min({high})", most)),)
    return [found]


def comparison(dtypes: tuple[str, ...], combine: Callable[[Span, Span], Span]) -> Rule:
    """Whether something is true of two values."""

    def rule(node: Node) -> list[Value]:
        found = _combined(node, node.input(0), node.input(1), dtypes, combine)
        return [Value("bool", found.shape, found.spans)]

    return rule


equal = comparison(("int32",), spans.equal)
less = comparison(("int32", "float32"), spans.less)
less_or_equal = comparison(("int32",), spans.less_or_equal)
both = comparison(("bool",), spans.both)


def invert(node: Node) -> list[Value]:
    """Whether something is not true."""
    value = node.input(0)
    _check_dtype(node, value, ("bool",))
    return [Value("bool", value.shape, tuple(map(spans.invert, value.spans)))]


def where(node: Node) -> list[Value]:
    """One of two values, element by element."""
    condition, a, b = (node.input(i) for i in range(3))
    _check_dtype(node, condition, ("bool",))
    found = _combined(node, a, b, INDICES, lambda x, y: spans.hull((x, y)))
    shape = broadcast(node, condition.shape, found.shape)
    if count(shape) == 1 or len(shape) == 1:
        length = max(len(condition.spans), len(a.spans), len(b.spans))
        parts = [v.spans if len(v.spans) == length else v.spans * length for v in (condition, a, b)]
        return [Value(a.dtype, shape, tuple(map(spans.choose, *parts)))]
    return [Value(a.dtype, shape, (found.span,))]


def activation(node: Node) -> list[Value]:
    """A function of each element."""
    value = node.input(0)
    _check_dtype(node, value, FLOATS)
    return [Value(value.dtype, value.shape)]


# === Of rows ===


def softmax(node: Node) -> list[Value]:
    """Weights of the last axis that add up to 1."""
    value = node.input(0)
    _check_dtype(node, value, ("float32",))
    node.require(len(value.shape) > 0, "it is no row")
    return [Value(value.dtype, value.shape)]


def check_vector(node: Node, place: int, like: Value) -> None:
    """Makes sure that an input, where given, is a constant for each place of the last axis."""
    value = node.given(place)
    if value is None:
        return
    if not (value.initializer and value.dtype == like.dtype and value.shape == like.shape[-1:]):
        node.refuse(f"input {place} must be a constant of {like.dtype} [{like.shape[-1]}]")


def layer_normalization(node: Node) -> list[Value]:
    """Rows of mean 0 and variance 1, scaled and shifted."""
    value = node.input(0)
    _check_dtype(node, value, FLOATS)
    node.require(len(value.shape) > 1 and node.attributes.get("axis") == -1, "it is not of rows")
    check_vector(node, 1, value)
    check_vector(node, 2, value)
    return [Value(value.dtype, value.shape)]


def reduce_max(node: Node) -> list[Value]:
    """The largest of a vector."""
    value = node.input(0)
    _check_dtype(node, value, ("int32",))
    whole = len(node.inputs) == 1 or node.ints(1) == [0]
    node.require(len(value.shape) == 1 and whole, "it is not of a whole vector")
    # Without axes this attribute would leave the vector as it is.
    node.require(len(node.inputs) > 1 or not node.attributes.get("noop_with_empty_axes"), "of no axis")
    return [Value(value.dtype, (1,) * _keepdims(node), (value.span,))]


def reduce_sum(node: Node) -> list[Value]:
    """Sums of rows."""
    value = node.input(0)
    _check_dtype(node, value, ("float32",))
    node.require(len(value.shape) == 2 and node.ints(1) == [1], "it is not of rows")
    return [Value(value.dtype, value.shape[:1] + (1,) * _keepdims(node))]


def _keepdims(node: Node) -> int:
    keep = node.attributes.get("keepdims", 1)
    node.require(keep in (0, 1), "keepdims is neither 0 nor 1")
    return int(keep)
