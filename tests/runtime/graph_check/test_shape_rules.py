"""Operators that lay values out anew, look them up or write them."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.graph_check.sizes import BATCH, CAPACITY, SEQUENCE, symbol
from runtime.graph_check.spans import Span, only
from tests.runtime.graph_check.reading import const, made, number, numbers, refused, told, value

B, S, C = BATCH, SEQUENCE, CAPACITY
USED = symbol("used", C)


def test_shape() -> None:
    (found,) = made("Shape", "float32 [B, 4, C, 8]")
    assert (str(found), found.numbers()) == ("int64 [4]", [B, 4, C, 8])
    assert not found.numbers_are_fixed
    (found,) = made("Shape", "int64 [B, 1]", start=1)
    assert (str(found), found.numbers(), found.numbers_are_fixed) == ("int64 [1]", [1], True)
    refused("no such axis", "Shape", "int64 [B, 1]", start=2)
    refused("no such axis", "Shape", "int64 [B, 1]", start=-1)


def test_cast() -> None:
    assert told("Cast", "int64 [B]", to=6) == "int32 [B]".replace("B", "batch")
    assert told("Cast", "bool [B]", to=1) == "float32 [batch]"
    assert told("Cast", "int32 [B]", to=7) == "int64 [batch]"
    assert made("Cast", numbers(B, 3), to=6)[0].numbers() == [B, 3]
    for to in (0, 2, 3, 8, 9, 10, 11, 16):
        refused("no bundle casts to that", "Cast", "int64 [B]", to=to)
    refused("no bundle casts", "Cast", "int64 [B]")


def test_identity() -> None:
    (found,) = made("Identity", numbers(B, 3))
    assert (str(found), found.numbers()) == ("int64 [2]", [B, 3])


@pytest.mark.parametrize(
    ("shape", "target", "expected"),
    [
        ("[B, S]", [-1], "[batch*sequence]"),
        ("[B*S, 96]", [B, S, 4, 24], "[batch, sequence, 4, 24]"),
        ("[B*S, 32]", [-1, 4, 1, 8], "[batch*sequence, 4, 1, 8]"),
        ("[B, 4, S, 8]", [-1, 32], "[batch*sequence, 32]"),
        ("[B, 512]", [0, 2, 256], "[batch, 2, 256]"),
        ("[B, 2, 64]", [0, 128], "[batch, 128]"),
        ("[]", [1], "[1]"),
        ("[1]", [1, 1], "[1, 1]"),
    ],
)
def test_reshape(shape: str, target: list[Any], expected: str) -> None:
    assert told("Reshape", f"float32 {shape}", numbers(*target)) == f"float32 {expected}"


@pytest.mark.parametrize(
    ("shape", "target", "why"),
    [
        ("[B, S]", [-1, -1], "cannot have"),
        ("[B, 4]", [-1, 3], "cannot have"),
        ("[B, 4]", [B, 5], "cannot have"),
        ("[B, S]", [S, -1, C], "cannot have"),
        ("[4]", [0, 0], "an axis that is not there"),
        ("[4]", [-4, -1], "cannot have"),
        ("[4]", [-2, -2], "cannot have"),
        ("[B]", [1], "cannot have"),
    ],
)
def test_reshapes_that_are_refused(shape: str, target: list[Any], why: str) -> None:
    refused(why, "Reshape", f"float32 {shape}", numbers(*target))


def test_a_target_that_is_not_known() -> None:
    for kind in ("Reshape", "Expand"):
        for target in ("int64 [2]", numbers(4, 4, dtype="int32"), value("int64 [B]", only(4))):
            refused("the shape cannot be told", kind, "float32 [4, 4]", target)
    refused("cannot be told", "Reshape", "float32 [1]", number(1, "int64"))


def test_a_reshape_keeps_what_is_known_of_all() -> None:
    (found,) = made("Reshape", value("int32 [B, S]", Span(0, C)), numbers(-1))
    assert found.spans == (Span(0, C),)


def test_expand() -> None:
    assert told("Expand", "int32 [1, 4, 1]", numbers(B, 4, S)) == "int32 [batch, 4, sequence]"
    assert told("Expand", "int32 [B, 1]", numbers(1, 3)) == "int32 [batch, 3]"
    assert told("Expand", "int32 [3]", numbers(B, 1)) == "int32 [batch, 3]"
    refused("do not agree", "Expand", "int32 [4]", numbers(B, 5))
    refused("do not agree", "Expand", "int32 [B]", numbers(S))
    refused("cannot be told", "Expand", "int32 [1]", numbers(0))
    refused("cannot be told", "Expand", "int32 [1]", numbers(-1))


def test_squeeze_and_unsqueeze() -> None:
    assert told("Squeeze", "int32 [1]", numbers(0)) == "int32 []"
    assert told("Squeeze", "int32 [B, 1, 3]", numbers(-2)) == "int32 [batch, 3]"
    refused("size 1", "Squeeze", "int32 [B, 1]", numbers(0))
    refused("no axis 1", "Squeeze", "int32 [1]", numbers(1))
    refused("no axis -2", "Squeeze", "int32 [1]", numbers(-2))
    assert told("Unsqueeze", "int32 [B, S]", numbers(1, 3)) == "int32 [batch, 1, sequence, 1]"
    assert told("Unsqueeze", "int32 []", numbers(0, 1)) == "int32 [1, 1]"
    assert told("Unsqueeze", "int32 [B]", numbers(-1)) == "int32 [batch, 1]"
    refused("twice", "Unsqueeze", "int32 [B]", numbers(1, -2))
    refused("no axis 2", "Unsqueeze", "int32 [B]", numbers(2))
    for kind in ("Squeeze", "Unsqueeze"):
        refused("short list of whole numbers", kind, "int32 [1]", "int64 [1]")
        refused("short list of whole numbers", kind, "int32 [1]", numbers(B))
        refused("short list of whole numbers", kind, "int32 [1]", number(0, "int64"))
        refused("short list of whole numbers", kind, "int32 [1]", numbers(0, dtype="float32"))


def test_numbers_move_with_the_last_axis() -> None:
    (found,) = made("Unsqueeze", numbers(1, 2), numbers(0))
    assert found.spans == (only(1), only(2))
    (found,) = made("Unsqueeze", numbers(1, 2), numbers(1))
    assert found.spans == (Span(1, 2),)
    (found,) = made("Squeeze", value("int64 [1, 2]", only(1), only(2)), numbers(0))
    assert found.spans == (only(1), only(2))
    (found,) = made("Squeeze", value("int64 [2, 1]", only(1)), numbers(1))
    assert found.spans == (only(1),)


def test_transpose() -> None:
    assert told("Transpose", "float32 [B, S, 4, 8]", perm=[0, 2, 1, 3]) == (
        "float32 [batch, 4, sequence, 8]"
    )
    (found,) = made("Transpose", value("int64 [1, 2]", only(1), only(2)), perm=[1, 0])
    assert found.spans == (Span(1, 2),)
    for order in ([0], [0, 0], [0, 2], [1, 0, 2], [-1, 0]):
        refused("the order is not one of its axes", "Transpose", "float32 [B, 4]", perm=order)
    refused("the order", "Transpose", "float32 [B, 4]")


def test_concat() -> None:
    (found,) = made("Concat", numbers(B), numbers(S), numbers(4, 8), axis=0)
    assert found.numbers() == [B, S, 4, 8]
    indices = [value("int32 [B, 4, S, 1]", Span(0, high)) for high in (B - 1, 3, C - 1)]
    (found,) = made("Concat", *indices, axis=3)
    assert str(found) == "int32 [batch, 4, sequence, 3]"
    assert found.spans == (Span(0, B - 1), Span(0, 3), Span(0, C - 1))
    (found,) = made("Concat", value("int32 [2, 4]", only(1)), value("int32 [3, 4]", only(2)), axis=-2)
    assert (str(found), found.spans) == ("int32 [5, 4]", (Span(1, 2),))
    assert made("Concat", numbers(*range(40)), numbers(*range(40)), axis=0)[0].spans == (Span(0, 39),)
    for wrong in ("float32 [2]", "int64 [2, 1]", "int64 [B]"):
        refused("do not fit together", "Concat", numbers(1), wrong, axis=0)
    refused("do not fit together", "Concat", "int32 [2, 4]", "int32 [2, 5]", axis=0)
    refused("do not fit together", "Concat", "int32 [B, 4]", "int32 [S, 4]", axis=1)
    refused("no axis 1", "Concat", numbers(1), axis=1)
    refused("no axis", "Concat", number(1), axis=0)
    refused("no axis", "Concat", numbers(1))


def test_split() -> None:
    assert told("Split", "float32 [B, 96]", outputs=3, axis=-1, num_outputs=3) == "; ".join(
        ["float32 [batch, 32]"] * 3
    )
    refused("equal parts", "Split", "float32 [B, 97]", outputs=3, axis=-1, num_outputs=3)
    refused("equal parts", "Split", "float32 [3, B]", outputs=3, axis=-1, num_outputs=3)
    refused("equal parts", "Split", "float32 [96, 96]", outputs=3, axis=0, num_outputs=3)
    refused("equal parts", "Split", "float32 [B, 96]", outputs=3, axis=-1, num_outputs=4)
    refused("equal parts", "Split", "float32 [B, 96]", outputs=3, axis=-1)
    refused("equal parts", "Split", "float32 []", outputs=3, axis=-1, num_outputs=3)


# === Slices ===


def cut(shape: str, starts: Any, ends: Any, axes: Any, steps: Any = None) -> str:
    given = [numbers(*each) for each in (starts, ends, axes, *([steps] if steps else []))]
    return told("Slice", f"float32 {shape}", *given).removeprefix("float32 ")


def test_slices() -> None:
    assert cut("[4]", [2], [3], [0]) == "[1]"
    assert cut("[4]", [1], [10**9], [0]) == "[3]"
    assert cut("[4]", [0], [4], [0], [1]) == "[4]"
    assert cut("[B, S]", [0, 0], [10**9, 10**9], [0, 1], [1, 1]) == "[batch, sequence]"
    assert cut("[B, 4, C, 8]", [0] * 4, [10**9, 10**9, USED, 10**9], [0, 1, 2, 3]) == (
        "[batch, 4, used, 8]"
    )
    assert cut("[B, S]", [0], [B * S], [0]) == "[batch, sequence]"
    (found,) = made("Slice", numbers(5, B, 7), numbers(1), numbers(3), numbers(0))
    assert found.numbers() == [B, 7]
    rows = value("int64 [2, 3]", *map(only, (5, 6, 7)))
    (found,) = made("Slice", rows, numbers(1), numbers(2), numbers(1))
    assert (str(found), found.spans) == ("int64 [2, 1]", (only(6),))
    (found,) = made("Slice", rows, numbers(1), numbers(2), numbers(0))
    assert (str(found), found.spans) == ("int64 [1, 3]", (only(5), only(6), only(7)))


@pytest.mark.parametrize(
    ("shape", "starts", "ends", "axes", "steps", "why"),
    [
        ("[4]", [2], [2], [0], None, "nothing is left"),
        ("[4]", [4], [10**9], [0], None, "nothing is left"),
        ("[4]", [-1], [4], [0], None, "cannot be told"),
        ("[4]", [0], [-1], [0], None, "cannot be told"),
        ("[4]", [0], [B], [0], None, "cannot be told"),
        ("[B]", [1], [10**9], [0], None, "cannot be told"),
        ("[B]", [0], [10**9 - 1], [0], None, "cannot be told"),
        ("[B]", [0], [S], [0], None, "cannot be told"),
        ("[B]", [0], [0], [0], None, "cannot be told"),
        ("[C]", [1], [USED], [0], None, "cannot be told"),
        ("[4]", [0], [4], [1], None, "no such axis"),
        ("[4]", [0], [4], [-1], None, "no such axis"),
        ("[4]", [0], [4], [0], [2], "a step is not 1"),
        ("[4]", [0], [4], [0], [-1], "a step is not 1"),
        ("[4, 4]", [0, 0], [4, 4], [0, 0], None, "cuts an axis twice"),
        ("[4, 4]", [0, 0], [4], [0, 1], None, "cannot be told"),
        ("[4]", [0], [4], [0], [1, 1], "cannot be told"),
    ],
)
def test_slices_that_are_refused(
    shape: str, starts: Any, ends: Any, axes: Any, steps: Any, why: str
) -> None:
    given = [numbers(*each) for each in (starts, ends, axes, *([steps] if steps else []))]
    refused(why, "Slice", f"float32 {shape}", *given)


def test_where_slices_end_has_one_dtype() -> None:
    ends = numbers(1, dtype="int32")
    refused("cannot be told", "Slice", "float32 [4]", numbers(0), ends, numbers(0))
    refused("cannot be told", "Slice", "float32 [4]", numbers(0), "int64 [1]", numbers(0))


def test_range() -> None:
    zero, one = number(0), number(1)
    (found,) = made("Range", zero, number(B, constant=False), one)
    assert (str(found), found.spans) == ("int32 [batch]", (Span(0, B - 1),))
    assert told("Range", zero, number(USED), one) == "int32 [used]"
    refused("its size cannot be told", "Range", zero, number(0), one)
    refused("its size cannot be told", "Range", zero, number(-5), one)
    refused("count whole numbers", "Range", zero, value("int32 []"), one)
    refused("count whole numbers", "Range", one, number(B), one)
    refused("count whole numbers", "Range", zero, number(B), number(2))
    refused("count whole numbers", "Range", zero, number(B), number(-1))
    refused("count whole numbers", "Range", zero, number(B, "int64"), one)
    refused("count whole numbers", "Range", *[number(n, "float32") for n in (0, 5, 1)])
    refused("count whole numbers", "Range", zero, numbers(B, dtype="int32"), one)


# === Lookups ===


def indices(shape: str, low: Any, high: Any, dtype: str = "int64") -> Any:
    return value(f"{dtype} {shape}", Span(low, high))


def test_gather() -> None:
    table = const("float32 [300, 32]")
    assert told("Gather", table, indices("[B, S]", 0, 299), axis=0) == ("float32 [batch, sequence, 32]")
    assert told("Gather", "float32 [B*S, 32]", indices("[B]", 0, B * S - 1, "int32"), axis=0) == (
        "float32 [batch, 32]"
    )
    for low, high in ((0, 300), (-1, 299), (None, 299), (0, None), (0, B)):
        refused("may lie beyond 300 places", "Gather", table, indices("[B]", low, high), axis=0)
    refused("no whole numbers", "Gather", table, indices("[B]", 0, 1, "float32"), axis=0)
    refused("no rows", "Gather", table, indices("[B]", 0, 1), axis=1)
    refused("no rows", "Gather", table, indices("[B]", 0, 1))
    refused("no rows", "Gather", "float32 []", indices("[B]", 0, 0), axis=0)


def test_gather_elements() -> None:
    assert told("GatherElements", "int64 [B, 128]", indices("[B, 64]", 0, 127), axis=1) == (
        "int64 [batch, 64]"
    )
    refused("beyond 128", "GatherElements", "int64 [B, 128]", indices("[B, 64]", 0, 128), axis=1)
    refused("agree", "GatherElements", "int64 [B, 128]", indices("[S, 64]", 0, 1), axis=1)
    refused("agree", "GatherElements", "int64 [B, 128]", indices("[B]", 0, 1), axis=1)
    refused("agree", "GatherElements", "int64 [B, 128]", indices("[B, 64]", 0, 1, "int32"), axis=1)
    refused("no axis 2", "GatherElements", "int64 [B, 128]", indices("[B, 64]", 0, 1), axis=2)


def test_scatter() -> None:
    past = "float32 [B, 4, C, 8]"
    new = "float32 [B, 4, S, 8]"
    spans = [Span(0, B - 1), Span(0, 3), Span(0, C - 1)]
    where = value("int64 [B, 4, S, 3]", *spans)
    assert told("ScatterND", past, where, new) == "float32 [batch, 4, capacity, 8]"
    for place, high in ((0, B), (1, 4), (2, C)):
        beyond = list(spans)
        beyond[place] = Span(0, high)
        refused("may lie beyond", "ScatterND", past, value("int64 [B, 4, S, 3]", *beyond), new)
    refused("may lie beyond", "ScatterND", past, value("int64 [B, 4, S, 3]", Span(0, 3)), new)
    refused("updates do not agree", "ScatterND", past, where, "float32 [B, 4, S, 9]")
    refused("updates do not agree", "ScatterND", past, where, "float32 [B, S, 4, 8]")
    refused("updates do not agree", "ScatterND", past, where, "float16 [B, 4, S, 8]")
    refused("indices do not agree", "ScatterND", past, value("int32 [B, 4, S, 3]", *spans), new)
    refused("indices do not agree", "ScatterND", past, value("int64 [B, 4, S, 5]", Span(0, 0)), new)
    refused("indices do not agree", "ScatterND", past, value("int64 [B, 4, S]", Span(0, 0)), new)


def test_top_k() -> None:
    best, places = made("TopK", "float32 [B, 300]", numbers(64), outputs=2, axis=-1)
    assert (str(best), str(places)) == ("float32 [batch, 64]", "int64 [batch, 64]")
    assert places.spans == (Span(0, 299),)
    refused("not as many", "TopK", "float32 [B, 300]", numbers(301), outputs=2, axis=-1)
    refused("not as many", "TopK", "float32 [B, 300]", numbers(0), outputs=2, axis=-1)
    refused("not as many", "TopK", "float32 [B, 300]", numbers(1, 2), outputs=2, axis=-1)
    refused("not as many", "TopK", "float32 [B, S]", numbers(1), outputs=2, axis=-1)
    refused("ranks no rows", "TopK", "float32 [300, 300]", numbers(64), outputs=2, axis=0)
    refused("ranks no rows", "TopK", "int64 [B, 300]", numbers(64), outputs=2, axis=-1)
