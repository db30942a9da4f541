"""Operators of elements and of rows."""

from __future__ import annotations

import pytest

from runtime.graph_check.sizes import BATCH, CAPACITY, SEQUENCE, Size, at_least
from runtime.graph_check.spans import EITHER, FALSE, TRUE, UNKNOWN, Span, only
from tests.runtime.graph_check.reading import const, made, number, numbers, refused, told, value

B, S, C = BATCH, SEQUENCE, CAPACITY
ACTIVATIONS = ("Erf", "Exp", "Relu", "Sigmoid", "Tanh")


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("[B, S]", "[B, S]", "[batch, sequence]"),
        ("[B, 1]", "[S]", "[batch, sequence]"),
        ("[B, S, 32]", "[32]", "[batch, sequence, 32]"),
        ("[]", "[B]", "[batch]"),
        ("[B, 1, S, 1]", "[1, 4, 1, C]", "[batch, 4, sequence, capacity]"),
    ],
)
def test_shapes_are_broadcast(a: str, b: str, expected: str) -> None:
    assert told("Add", f"float32 {a}", f"float32 {b}") == f"float32 {expected}"
    assert told("Mul", f"float16 {b}", f"float16 {a}") == f"float16 {expected}"


@pytest.mark.parametrize(
    ("a", "b"), [("[B]", "[S]"), ("[3]", "[4]"), ("[S, B]", "[S]"), ("[2]", "[B]")]
)
def test_shapes_that_do_not_agree(a: str, b: str) -> None:
    for kind in ("Add", "Mul", "Sub", "Max"):
        refused("the shapes do not agree", kind, f"int32 {a}", f"int32 {b}")


def test_dtypes() -> None:
    for dtype in ("float32", "float16", "bfloat16", "int32", "int64"):
        for kind in ("Add", "Mul", "Sub"):
            assert told(kind, f"{dtype} [4]", f"{dtype} [4]") == f"{dtype} [4]"
    for kind in ("Add", "Mul", "Sub", "Max", "Min", "Pow", "Where"):
        for dtype in ("bool", "uint8", "int8"):
            given = [f"{dtype} [4]"] * 2
            refused("", kind, *(["bool [4]"] if kind == "Where" else []), *given)
    refused("the dtypes do not agree", "Add", "int32 [4]", "int64 [4]")
    refused("is computed of int32, int64", "Min", "float32 [4]", "float32 [4]")
    refused("is computed of", "Max", "float16 [4]", "float16 [4]")
    for kind in ACTIVATIONS:
        assert told(kind, "bfloat16 [B, 4]") == "bfloat16 [batch, 4]"
        refused("is computed of", kind, "int32 [4]")
    refused("is computed of", "Softmax", "float16 [4]")
    refused("is computed of", "And", "int32 [4]", "int32 [4]")
    refused("is computed of", "Not", "int32 [4]")
    refused("is computed of", "Equal", "float32 [4]", "float32 [4]")
    refused("is computed of", "LessOrEqual", "float32 [4]", "float32 [4]")
    refused("is computed of", "Where", "int32 [4]", "int32 [4]", "int32 [4]")


def test_numbers_are_followed() -> None:
    past, tokens = value("int32 [B, 1]", Span(0, C)), value("int32 [1, S]", Span(0, S - 1))
    assert made("Add", past, tokens)[0].spans == (Span(0, C + S - 1),)
    assert made("Sub", numbers(B, 5), number(1, "int64"))[0].numbers() == [B - 1, 4]
    assert made("Mul", number(S), value("int32 [B]", Span(0, B - 1)))[0].spans == (Span(0, B * S - S),)
    assert made("Max", numbers(B, -1), number(0, "int64"))[0].numbers() == [B, 0]


def test_of_sums_of_floats_nothing_is_known() -> None:
    """They are rounded; what is compared with is not."""
    for kind in ("Add", "Sub", "Mul"):
        assert made(kind, number(1, "float32"), number(0, "float32"))[0].spans == (UNKNOWN,)
    assert made("Max", number(B, "float32"), number(0, "float32"))[0].numbers() == [B]


def test_a_smallest_size_is_one_of_its_own() -> None:
    after = value("int32 []", Span(S, C + S))
    (found,) = made("Min", after, number(C))
    (used,) = found.numbers() or [0]
    assert isinstance(used, Size)
    assert at_least(C, used)
    assert not at_least(used, 2)
    assert made("Min", after, number(C))[0].numbers() != [used]
    assert made("Min", number(B), number(B * S))[0].numbers() == [B]
    # Of several numbers, or where 0 may be one, there is none.
    assert made("Min", value("int32 [B]", Span(1, C + S)), number(C))[0].span == Span(1, C)
    assert made("Min", value("int32 []", Span(0, C + S)), number(C))[0].span == Span(0, C)
    assert made("Min", value("int32 []", Span(1, C + S)), number(C + 1))[0].span == Span(1, C + 1)
    (few,) = made("Min", value("int32 [1]", Span(1, C)), numbers(5, dtype="int32"))[0].numbers() or [0]
    assert at_least(5, few)


def test_comparisons() -> None:
    (found,) = made("Less", numbers(1, B, -1, dtype="int32"), number(0))
    assert (str(found), found.spans) == ("bool [3]", (FALSE, FALSE, TRUE))
    (found,) = made("LessOrEqual", "int32 [1, C]", "int32 [B, 1]")
    assert (str(found), found.spans) == ("bool [batch, capacity]", (EITHER,))
    assert made("Equal", numbers(B, 1, dtype="int32"), number(1))[0].spans == (EITHER, TRUE)
    assert made("Less", number(-1, "float32"), number(0, "float32"))[0].spans == (TRUE,)
    assert made("And", value("bool [2]", TRUE, EITHER), value("bool [2]", FALSE))[0].spans == (
        FALSE,
        FALSE,
    )
    assert made("Not", value("bool [2]", TRUE, EITHER))[0].spans == (FALSE, EITHER)


def test_where() -> None:
    condition = value("bool [3]", FALSE, TRUE, EITHER)
    (found,) = made("Where", condition, number(-1, "int64"), numbers(0, B, S))
    assert found.spans == (only(0), only(-1), Span(-1, S))
    (found,) = made("Where", value("bool [B, 1]", TRUE), "int32 [B, S]", "int32 [S]")
    assert (str(found), found.spans) == ("int32 [batch, sequence]", (UNKNOWN,))
    refused("do not agree", "Where", "bool [2]", "int32 [3]", "int32 [3]")
    refused("do not agree", "Where", "bool [2]", "int32 []", "int64 []")


def test_power() -> None:
    assert told("Pow", "float32 [B, 4]", const("float32 []")) == "float32 [batch, 4]"
    refused("no constant", "Pow", "float32 [B, 4]", "float32 []")
    refused("no constant", "Pow", "float32 [B, 4]", const("float32 [4]"))
    refused("dtypes do not agree", "Pow", "float16 [B, 4]", const("float32 []"))


# === Rows ===


def test_softmax() -> None:
    assert told("Softmax", "float32 [B, 4, S, C]") == "float32 [batch, 4, sequence, capacity]"
    refused("no row", "Softmax", "float32 []")


def test_layer_normalization() -> None:
    x, scale = "float32 [B, S, 32]", const("float32 [32]")
    for given in ([x, scale], [x, scale, scale]):
        assert told("LayerNormalization", *given, axis=-1) == "float32 [batch, sequence, 32]"
    half = const("float16 [32]")
    assert told("LayerNormalization", "float16 [B, 32]", half, axis=-1) == "float16 [batch, 32]"
    for axis in (0, 1, -2):
        refused("not of rows", "LayerNormalization", x, scale, axis=axis)
    refused("not of rows", "LayerNormalization", x, scale)
    refused("not of rows", "LayerNormalization", "float32 [32]", scale, axis=-1)
    for wrong in (const("float32 [31]"), const("float32 []"), const("float32 [1, 32]"), half):
        refused("input 1 must be", "LayerNormalization", x, wrong, axis=-1)
        refused("input 2 must be", "LayerNormalization", x, scale, wrong, axis=-1)
    refused(
        "input 1 must be a constant of float32 .32", "LayerNormalization", x, "float32 [32]", axis=-1
    )
    refused("is computed of", "LayerNormalization", "int32 [B, 32]", const("int32 [32]"), axis=-1)


def test_reductions() -> None:
    past = value("int32 [B]", Span(0, C))
    (found,) = made("ReduceMax", past, keepdims=1)
    assert (str(found), found.spans) == ("int32 [1]", (Span(0, C),))
    assert told("ReduceMax", past) == "int32 [1]"
    axes = numbers(0)
    assert told("ReduceMax", past, axes, keepdims=0, noop_with_empty_axes=1) == "int32 []"
    refused("of no axis", "ReduceMax", past, noop_with_empty_axes=1)
    refused("whole vector", "ReduceMax", past, numbers(1))
    refused("whole vector", "ReduceMax", past, numbers())
    refused("whole vector", "ReduceMax", "int32 [B, S]")
    refused("whole vector", "ReduceMax", "int32 []")
    refused("is computed of", "ReduceMax", "int64 [B]")
    refused("neither 0 nor 1", "ReduceMax", past, keepdims=2)
    refused("neither 0 nor 1", "ReduceMax", past, keepdims=-1)
    rows = "float32 [B, 300]"
    assert told("ReduceSum", rows, numbers(1), keepdims=0) == "float32 [batch]"
    assert told("ReduceSum", rows, numbers(1), keepdims=1) == "float32 [batch, 1]"
    refused("not of rows", "ReduceSum", rows, numbers(0))
    refused("not of rows", "ReduceSum", rows, numbers(0, 1))
    refused("not of rows", "ReduceSum", "float32 [B]", numbers(1))
    refused("is computed of", "ReduceSum", "int64 [B, 2]", numbers(1))
