"""Rules of the standard operators that lay values out anew, look them up or write them.

A rule checks the inputs of an operator of ONNX's opset 18 (https://onnx.ai/onnx/operators) as far as
its kernels rely on them, and returns what it makes.
"""

from __future__ import annotations

from runtime.graph_check.sizes import Dim, Shape, at_least, count, quotient
from runtime.graph_check.spans import Span, hull, only
from runtime.graph_check.values import MOST_SPANS, Node, Value

INDICES = ("int32", "int64")
TO_THE_END = 10**9  # what the traced graphs write for the end of an axis, whatever it is


def shape(node: Node) -> list[Value]:
    """Sizes of a value's axes, from one on."""
    sizes = node.input(0).shape
    start = node.attributes.get("start", 0)
    node.require(0 <= start < len(sizes), "there is no such axis")
    kept = sizes[start:]
    return [Value("int64", (len(kept),), tuple(map(only, kept)))]


def cast(node: Node) -> list[Value]:
    """The same numbers in another dtype."""
    value = node.input(0)
    target = {1: "float32", 6: "int32", 7: "int64"}.get(node.attributes.get("to", 0))
    if target is None:
        node.refuse("no bundle casts to that")
    return [Value(target, value.shape, value.spans)]


def identity(node: Node) -> list[Value]:
    """The same value."""
    value = node.input(0)
    return [Value(value.dtype, value.shape, value.spans)]


def reshape(node: Node) -> list[Value]:
    """The same elements in another shape."""
    value, target = node.input(0), node.input(1)
    wanted = target.numbers() if target.dtype == "int64" and len(target.shape) == 1 else None
    if wanted is None:
        node.refuse("the shape cannot be told")
    node.require(
        all(each != 0 or place < len(value.shape) for place, each in enumerate(wanted)),
        "it keeps an axis that is not there",
    )
    made = [value.shape[place] if each == 0 else each for place, each in enumerate(wanted)]
    total = count(value.shape)
    if -1 in made:
        place = made.index(-1)
        made[place] = 1
        rest = quotient(total, count(tuple(made)))
        if rest is None:
            node.refuse(f"{total} elements cannot have the shape {wanted}")
        made[place] = rest
    result = tuple(made)
    node.require(
        all(at_least(each, 1) for each in result) and count(result) == total,
        f"{total} elements cannot have the shape {wanted}",
    )
    return [Value(value.dtype, result, (value.span,))]


def expand(node: Node) -> list[Value]:
    """A value repeated along axes of size 1."""
    value, target = node.input(0), node.input(1)
    wanted = target.numbers() if target.dtype == "int64" and len(target.shape) == 1 else None
    if wanted is None or not all(at_least(each, 1) for each in wanted):
        node.refuse("the shape cannot be told")
    return [Value(value.dtype, broadcast(node, value.shape, tuple(wanted)), (value.span,))]


def broadcast(node: Node, *shapes: Shape) -> Shape:
    """The shape of values that are combined element by element."""
    first, *others = shapes
    for other in others:
        if first == other:
            continue
        rank = max(len(first), len(other))
        a, b = (1,) * (rank - len(first)) + first, (1,) * (rank - len(other)) + other
        if not all(x == y or x == 1 or y == 1 for x, y in zip(a, b, strict=True)):
            node.refuse("the shapes do not agree")
        first = tuple(y if x == 1 else x for x, y in zip(a, b, strict=True))
    return first


def squeeze(node: Node) -> list[Value]:
    """A value without axes of size 1."""
    value = node.input(0)
    axes = {node.axis(axis, len(value.shape)) for axis in node.ints(1)}
    node.require(all(value.shape[axis] == 1 for axis in axes), "the axis does not have the size 1")
    kept = [size for axis, size in enumerate(value.shape) if axis not in axes]
    return [Value(value.dtype, tuple(kept), _moved(value, len(value.shape) - 1 not in axes))]


def unsqueeze(node: Node) -> list[Value]:
    """A value with more axes of size 1."""
    value = node.input(0)
    axes = node.ints(1)
    rank = len(value.shape) + len(axes)
    places = {node.axis(axis, rank) for axis in axes}
    node.require(len(places) == len(axes), "it adds an axis twice")
    sizes = iter(value.shape)
    made = tuple(1 if axis in places else next(sizes) for axis in range(rank))
    return [Value(value.dtype, made, _moved(value, rank - 1 not in places))]


def _moved(value: Value, same_last_axis: bool) -> tuple[Span, ...]:
    return value.spans if same_last_axis or len(value.spans) == 1 else (value.span,)


def transpose(node: Node) -> list[Value]:
    """A value with its axes in another order."""
    value = node.input(0)
    order = node.attributes.get("perm", [])
    node.require(sorted(order) == list(range(len(value.shape))), "the order is not one of its axes")
    return [Value(value.dtype, tuple(value.shape[axis] for axis in order), (value.span,))]


def concat(node: Node) -> list[Value]:
    """Values one after another along an axis."""
    values = [node.input(i) for i in range(len(node.inputs))]
    first = values[0]
    rank = len(first.shape)
    axis = node.axis(node.attributes.get("axis", rank), rank)
    sizes: list[int] = []
    for value in values:
        same = value.dtype == first.dtype and len(value.shape) == rank
        size = value.shape[axis] if same else 0
        others = [value.shape[i] == first.shape[i] for i in range(rank) if i != axis] if same else []
        if not same or not isinstance(size, int) or not all(others):
            node.refuse("the values do not fit together")
        sizes.append(size)
    made = (*first.shape[:axis], sum(sizes), *first.shape[axis + 1 :])
    if axis < rank - 1 or sum(sizes) > MOST_SPANS:
        return [Value(first.dtype, made, (hull(value.span for value in values),))]
    spans: list[Span] = []
    for value, size in zip(values, sizes, strict=True):
        spans += value.spans if len(value.spans) == size else [value.span] * size
    return [Value(first.dtype, made, tuple(spans))]


def split(node: Node) -> list[Value]:
    """Equal parts of the last axis."""
    value, parts = node.input(0), len(node.outputs)
    last = value.shape[-1] if value.shape else 0
    fits = isinstance(last, int) and last > 0 and last % parts == 0
    same = node.attributes.get("num_outputs") == parts and node.attributes.get("axis") == -1
    if not fits or not same or not isinstance(last, int):
        node.refuse("the last axis does not have equal parts")
    return [Value(value.dtype, (*value.shape[:-1], last // parts), (value.span,)) for _ in range(parts)]


def slice_(node: Node) -> list[Value]:
    """Parts of some axes."""
    value = node.input(0)
    starts, ends, axes = node.ints(1), node.input(2).numbers(), node.ints(3)
    steps = node.ints(4) if len(node.inputs) > 4 else [1] * len(axes)
    same = {node.input(i).dtype for i in range(1, len(node.inputs))} <= {node.input(1).dtype}
    if ends is None or not same or len({len(starts), len(ends), len(axes), len(steps)}) > 1:
        node.refuse("where it begins and ends cannot be told")
    node.require(steps == [1] * len(axes), "a step is not 1")
    node.require(len(set(axes)) == len(axes), "it cuts an axis twice")
    made = list(value.shape)
    spans = value.spans
    for start, end, axis in zip(starts, ends, axes, strict=True):
        node.require(0 <= axis < len(made), "there is no such axis")
        size = _cut(node, made[axis], start, end)
        made[axis] = size
        if axis == len(made) - 1 and len(spans) > 1 and isinstance(size, int):
            spans = spans[start : start + size]
    return [Value(value.dtype, tuple(made), spans)]


def _cut(node: Node, size: Dim, start: int, end: Dim) -> Dim:
    """The size of what lies from start to end of an axis."""
    if isinstance(size, int) and isinstance(end, int) and start >= 0 and end >= 0:
        left = min(end, size) - start
        node.require(left >= 1, "nothing is left")
        return left
    if start == 0 and (end == TO_THE_END or at_least(end, size)):
        return size
    if start == 0 and at_least(size, end) and at_least(end, 1):
        return end
    node.refuse("what is left cannot be told")


def range_(node: Node) -> list[Value]:
    """The whole numbers below a limit."""
    values = [node.input(i) for i in range(3)]
    start, limit, step = (value.numbers() for value in values)
    plain = {(value.dtype, len(value.shape)) for value in values}
    if len(plain) > 1 or plain.pop()[0] not in INDICES or limit is None or (start, step) != ([0], [1]):
        node.refuse("it must count whole numbers from 0 by 1 to a size")
    size = limit[0]
    node.require(at_least(size, 1), "its size cannot be told")
    return [Value(values[0].dtype, (size,), (Span(0, size - 1),))]


# === Lookups ===


def check_indices(node: Node, span: Span, size: Dim) -> None:
    """Makes sure that numbers are those of places along an axis: not every kernel looks."""
    low, high = span
    if low is None or high is None or not (at_least(low, 0) and at_least(size - 1, high)):
        node.refuse(f"indices of {low} to {high} may lie beyond {size} places")


def gather(node: Node) -> list[Value]:
    """Rows of a table."""
    table, indices = node.input(0), node.input(1)
    node.require(node.attributes.get("axis") == 0 and len(table.shape) > 0, "it looks up no rows")
    node.require(indices.dtype in INDICES, "the indices are no whole numbers")
    check_indices(node, indices.span, table.shape[0])
    return [Value(table.dtype, (*indices.shape, *table.shape[1:]), (table.span,))]


def gather_elements(node: Node) -> list[Value]:
    """An element of each row for each index."""
    value, indices = node.input(0), node.input(1)
    axis = node.axis(node.attributes.get("axis", 0), len(value.shape))
    same = indices.dtype == "int64" and len(indices.shape) == len(value.shape)
    if not same or any(
        a != b for i, (a, b) in enumerate(zip(value.shape, indices.shape, strict=True)) if i != axis
    ):
        node.refuse("the indices do not agree with the value")
    check_indices(node, indices.span, value.shape[axis])
    return [Value(value.dtype, indices.shape, (value.span,))]


def scatter_nd(node: Node) -> list[Value]:
    """A value with parts of it replaced."""
    value, indices, updates = (node.input(i) for i in range(3))
    depth = indices.shape[-1] if indices.shape else 0
    if indices.dtype != "int64" or not isinstance(depth, int) or not 1 <= depth <= len(value.shape):
        node.refuse("the indices do not agree with the value")
    spans = indices.spans if len(indices.spans) == depth else (indices.span,) * depth
    for span, size in zip(spans, value.shape, strict=False):
        check_indices(node, span, size)
    wanted = indices.shape[:-1] + value.shape[depth:]
    node.require(
        updates.dtype == value.dtype and updates.shape == wanted, "the updates do not agree with it"
    )
    return [Value(value.dtype, value.shape)]


def top_k(node: Node) -> list[Value]:
    """The largest of the last axis, and where they are."""
    value, wanted = node.input(0), node.ints(1)
    last = value.shape[-1] if value.shape else 0
    node.require(node.attributes.get("axis") == -1 and value.dtype == "float32", "it ranks no rows")
    if not isinstance(last, int) or len(wanted) != 1 or not 1 <= wanted[0] <= last:
        node.refuse("there are not as many")
    made = (*value.shape[:-1], wanted[0])
    return [Value(value.dtype, made), Value("int64", made, (Span(0, last - 1),))]
