"""Products of floats and of codes, whose kernels do not compare all of their shapes."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.graph_check.spans import Span
from tests.runtime.graph_check.reading import Input, const, refused, told, value


def test_matmul() -> None:
    assert told("MatMul", "float32 [B*S, 32]", const("float32 [32, 96]")) == (
        "float32 [batch*sequence, 96]"
    )
    assert told("MatMul", "float32 [B, 4, S, 8]", "float32 [B, 4, 8, C]") == (
        "float32 [batch, 4, sequence, capacity]"
    )
    assert told("MatMul", "float16 [B, S, 32]", "float16 [32, 8]") == "float16 [batch, sequence, 8]"
    for a, b in (
        ("[B, 32]", "[31, 96]"), ("[32]", "[32, 96]"), ("[B, 32]", "[32]"), ("[B, C]", "[S, 4]"),
        ("[B, 4, S, 8]", "[S, 4, 8, C]"), ("[2, 4, 8]", "[3, 8, 4]"),
    ):  # fmt: skip
        refused("do not agree", "MatMul", f"float32 {a}", f"float32 {b}")
    refused("one kind of floats", "MatMul", "float32 [B, 32]", "float16 [32, 96]")
    refused("one kind of floats", "MatMul", "int32 [B, 32]", "int32 [32, 96]")


def test_fused_matmul() -> None:
    x = "float16 [B, S, 32]"
    assert told("FusedMatMul", x, const("float16 [96, 32]"), transB=1) == (
        "float16 [batch, sequence, 96]"
    )
    refused("do not agree", "FusedMatMul", x, const("float16 [32, 96]"), transB=1)
    refused("do not agree", "FusedMatMul", x, const("float16 [96, 32]"), transB=0)
    refused("do not agree", "FusedMatMul", x, const("float16 [96, 32]"))
    refused("do not agree", "FusedMatMul", x, const("float16 [32, 32]"), transB=-1)
    refused("do not agree", "FusedMatMul", "float16 [32]", const("float16 [96, 32]"), transB=1)
    refused("do not agree", "FusedMatMul", x, const("float16 [1, 96, 32]"), transB=1)
    refused("one kind of floats", "FusedMatMul", x, const("float32 [96, 32]"), transB=1)


def test_gemm() -> None:
    x = "float32 [B*S, 32]"
    bias = const("float32 [96]")
    assert told("Gemm", x, const("float32 [32, 96]"), bias) == "float32 [batch*sequence, 96]"
    assert told("Gemm", x, const("float32 [300, 32]"), transB=1) == "float32 [batch*sequence, 300]"
    assert told("Gemm", x, const("float32 [96, 32]"), bias, transB=1) == "float32 [batch*sequence, 96]"
    refused("do not agree", "Gemm", x, const("float32 [96, 32]"), bias)
    refused("do not agree", "Gemm", x, const("float32 [32, 96]"), transB=1)
    refused("no matrices", "Gemm", "float32 [B, S, 32]", const("float32 [32, 96]"))
    refused("no matrices", "Gemm", x, const("float32 [32]"))
    refused("no matrices", "Gemm", x, const("float32 [96, 32]"), transB=2)
    for wrong in (const("float32 [95]"), const("float32 []"), const("float32 [1, 96]"), "float32 [96]"):
        refused("input 2 must be", "Gemm", x, const("float32 [32, 96]"), wrong)
    refused("input 2 must be", "Gemm", x, const("float32 [32, 96]"), const("float16 [96]"))
    refused("one kind of floats", "Gemm", x, const("float16 [32, 96]"))


# === Codes ===

SCALE, POINT = const("float32 []"), const("uint8 []")
CODES = "uint8 [B, S, 32]"


def replaced(given: list[Input], place: int, by: Input) -> list[Input]:
    return [*given[:place], by, *given[place + 1 :]]


@pytest.mark.parametrize(
    ("kind", "given", "expected", "wrong"),
    [
        (
            "QuantizeLinear",
            ["float32 [B, 32]", SCALE, POINT],
            "uint8 [batch, 32]",
            {
                0: ["float16 [B, 32]", "int32 [B, 32]"],
                1: ["float32 []", const("float32 [32]"), const("float16 []"), const("float32 [1]")],
                2: ["uint8 []", const("uint8 [32]"), const("int8 []")],
            },
        ),
        (
            "DequantizeLinear",
            ["uint8 [B, 32]", SCALE, POINT],
            "float32 [batch, 32]",
            {
                0: ["int8 [B, 32]", "int32 [B, 32]"],
                1: ["float32 []", const("float32 [32]"), const("float16 []")],
                2: ["uint8 []", const("uint8 [32]"), const("int8 []")],
            },
        ),
        (
            "MatMulInteger",
            ["uint8 [B, 32]", const("int8 [32, 96]"), "uint8 []", const("int8 []")],
            "int32 [batch, 96]",
            {
                0: ["int8 [B, 32]", "uint8 [B, 31]", "uint8 [32]"],
                1: ["int8 [32, 96]", const("uint8 [32, 96]"), const("int8 [1, 32, 96]")],
                2: ["int8 []", "uint8 [1]", "uint8 [B]"],
                3: [const("uint8 []"), const("int8 [96]"), const("int8 [2]")],
            },
        ),
        (
            "MatMulIntegerToFloat",
            [CODES, const("int8 [32, 96]"), SCALE, const("float32 [96]"), POINT, None,
             const("float32 [96]")],
            "float32 [batch, sequence, 96]",
            {
                0: ["int8 [B, S, 32]", "uint8 [B, S, 31]", "uint8 [32]", "float32 [B, S, 32]"],
                1: ["int8 [32, 96]", const("uint8 [32, 96]"), const("int8 [96, 32]")],
                2: ["float32 []", const("float32 [1]"), const("float32 [96]"), const("float16 []")],
                3: [const("float32 []"), const("float32 [1]"), const("float32 [95]"),
                    const("float32 [97]"), const("float32 [1, 96]"), "float32 [96]"],
                4: [const("uint8 [96]"), const("int8 []"), "uint8 []"],
                6: [const("float32 [95]"), const("float32 [1]"), const("float16 [96]"), "float32 [96]"],
            },
        ),
        (
            "QGemm",
            ["uint8 [B, 32]", SCALE, POINT, const("int8 [32, 96]"), const("float32 [96]"),
             const("int8 [96]")],
            "float32 [batch, 96]",
            {
                0: ["uint8 [B, S, 32]", "uint8 [B, 31]", "int8 [B, 32]"],
                1: [const("float32 [32]"), "float32 []"],
                2: [const("int8 []"), const("uint8 [32]"), "uint8 []"],
                3: ["int8 [32, 96]", const("int8 [96, 32]"), const("uint8 [32, 96]")],
                4: [const("float32 [95]"), const("float32 []"), "float32 [96]"],
                5: [const("int8 []"), const("int8 [1]"), const("uint8 [96]"), "int8 [96]"],
            },
        ),
    ],
)  # fmt: skip
def test_codes(kind: str, given: list[Input], expected: str, wrong: dict[int, list[Input]]) -> None:
    assert told(kind, *given) == expected
    for place, others in wrong.items():
        for other in others:
            refused("", kind, *replaced(given, place, other))


def test_one_column_with_two_scales() -> None:
    """ONNX Runtime's kernel reads beyond the product."""
    column = const("int8 [32, 1]")
    given: list[Input] = [CODES, column, SCALE, const("float32 [1]"), POINT]
    assert told("MatMulIntegerToFloat", *given) == "float32 [batch, sequence, 1]"
    refused(
        "input 3 must be float32 .1", "MatMulIntegerToFloat", *replaced(given, 3, const("float32 [2]"))
    )


def test_what_is_left_out() -> None:
    given: list[Input] = [CODES, const("int8 [32, 96]"), SCALE, const("float32 [96]"), POINT]
    for more in ([], [None], [None, None]):
        assert told("MatMulIntegerToFloat", *given, *more) == "float32 [batch, sequence, 96]"


def test_dequantized_signed_codes_have_signed_zero_points() -> None:
    assert told("DequantizeLinear", "int8 [4]", SCALE, const("int8 []")) == "float32 [4]"
    refused("codes of 8 bits", "DequantizeLinear", "int32 [4]", SCALE, const("int32 []"))


def test_dynamic_codes() -> None:
    assert told("DynamicQuantizeLinear", "float32 [B, 32]", outputs=3) == (
        "uint8 [batch, 32]; float32 []; uint8 []"
    )
    refused("of float32", "DynamicQuantizeLinear", "float16 [B, 32]", outputs=3)


# === Blocks ===

FOUR_BITS: list[Input] = [
    "float32 [B, S, 64]", const("uint8 [96, 2, 16]"), const("float32 [96, 2]"), const("uint8 [96, 1]"),
]  # fmt: skip
SIZES = {"K": 64, "N": 96, "bits": 4, "block_size": 32, "accuracy_level": 4}
EIGHT_BITS: list[Input] = ["float16 [B, S, 64]", const("uint8 [96, 2, 32]"), const("float16 [96, 2]")]
EIGHT = {"K": 64, "N": 96, "bits": 8, "block_size": 32}


def test_blocks() -> None:
    expected = "float32 [batch, sequence, 96]"
    assert told("MatMulNBits", *FOUR_BITS, **SIZES) == expected
    assert told("MatMulNBits", *FOUR_BITS, None, const("float32 [96]"), **SIZES) == expected
    assert told("MatMulNBits", *EIGHT_BITS, **EIGHT) == "float16 [batch, sequence, 96]"
    bias = [None, None, const("float16 [96]")]
    assert told("MatMulNBits", *EIGHT_BITS, *bias, **EIGHT) == "float16 [batch, sequence, 96]"
    # An odd number of blocks has half a byte of zero points to spare.
    odd: list[Input] = [
        "float32 [B, 48]", const("uint8 [5, 3, 8]"), const("float32 [5, 3]"), const("uint8 [5, 2]"),
    ]  # fmt: skip
    sizes = {**SIZES, "K": 48, "N": 5, "block_size": 16}
    assert told("MatMulNBits", *odd, **sizes) == "float32 [batch, 5]"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"K": 32}, "do not agree"), ({"K": 128}, "do not agree"), ({"K": -64}, "do not agree"),
        ({"N": 95}, "input 1 must be"), ({"N": 0}, "do not divide"), ({"N": -96}, "do not divide"),
        ({"bits": 8}, "no bundle has such blocks"), ({"bits": 2}, "no bundle has such blocks"),
        ({"block_size": 16}, "input 1 must be"), ({"block_size": 64}, "input 1 must be"),
        ({"block_size": 0}, "no bundle"), ({"block_size": 31}, "no bundle"),
        ({"block_size": 128}, "do not divide"), ({"accuracy_level": 0}, "no bundle"),
        ({"accuracy_level": 5}, "no bundle"),
    ],
)  # fmt: skip
def test_sizes_of_blocks(changes: dict[str, int], why: str) -> None:
    refused(why, "MatMulNBits", *FOUR_BITS, **{**SIZES, **changes})


@pytest.mark.parametrize(
    ("place", "other"),
    [
        (0, "float32 [B, S, 63]"), (0, "float16 [B, S, 64]"), (0, "float32 [64]"),
        (1, "uint8 [96, 2, 16]"), (1, const("uint8 [96, 2, 15]")), (1, const("uint8 [96, 32]")),
        (1, const("int8 [96, 2, 16]")), (1, const("uint8 [95, 2, 16]")),
        (1, const("uint8 [96, 3, 16]")),
        (2, const("float32 [96, 1]")), (2, const("float32 [192]")), (2, const("float16 [96, 2]")),
        (2, "float32 [96, 2]"),
        (3, const("uint8 [96, 2]")), (3, const("uint8 [95, 1]")), (3, const("float32 [96, 1]")),
        (3, None), (3, "uint8 [96, 1]"),
        (5, const("float32 [95]")), (5, const("float16 [96]")), (5, "float32 [96]"),
    ],
)  # fmt: skip
def test_parts_of_blocks(place: int, other: Input) -> None:
    given: list[Input] = [*FOUR_BITS, None, const("float32 [96]")]
    refused("", "MatMulNBits", *replaced(given, place, other), **SIZES)


def test_codes_of_eight_bits_have_no_zero_points() -> None:
    refused("no zero points", "MatMulNBits", *EIGHT_BITS, const("uint8 [96, 2]"), **EIGHT)


TABLE = const("uint8 [300, 32]")
LOOKUP: list[Input] = [
    TABLE, value("int64 [B, S]", Span(0, 299)), const("float32 [300, 2]"), const("uint8 [300, 1]"),
]  # fmt: skip
OF_ROWS: dict[str, Any] = {"bits": 4, "block_size": 32, "gather_axis": 0, "quantize_axis": 1}


def test_lookup_in_blocks() -> None:
    assert told("GatherBlockQuantized", *LOOKUP, **OF_ROWS) == "float32 [batch, sequence, 64]"
    for name in OF_ROWS:
        kept = {key: number for key, number in OF_ROWS.items() if key != name}
        refused("no bundle has such blocks", "GatherBlockQuantized", *LOOKUP, **kept)
    for name, number in (
        ("bits", 8), ("block_size", 17), ("block_size", 0), ("gather_axis", 1), ("quantize_axis", 0),
    ):  # fmt: skip
        refused("such blocks", "GatherBlockQuantized", *LOOKUP, **{**OF_ROWS, name: number})
    refused("do not divide", "GatherBlockQuantized", *LOOKUP, **{**OF_ROWS, "block_size": 128})


@pytest.mark.parametrize(
    ("place", "other"),
    [
        (0, const("uint8 [300, 16]")), (0, const("uint8 [299, 32]")), (0, const("int8 [300, 32]")),
        (0, "uint8 [300, 32]"), (0, const("uint8 [300, 2, 16]")), (0, const("uint8 [300]")),
        (1, value("int64 [B, S]", Span(0, 300))), (1, value("int64 [B, S]", Span(-1, 299))),
        (1, "int64 [B, S]"), (1, value("float32 [B, S]", Span(0, 299))),
        (2, const("float32 [300, 1]")), (2, const("float32 [299, 2]")), (2, const("float16 [300, 2]")),
        (2, "float32 [300, 2]"),
        (3, const("uint8 [300, 2]")), (3, const("uint8 [299, 1]")), (3, const("int8 [300, 1]")),
        (3, "uint8 [300, 1]"),
    ],
)  # fmt: skip
def test_parts_of_a_lookup_in_blocks(place: int, other: Input) -> None:
    refused("", "GatherBlockQuantized", *replaced(LOOKUP, place, other), **OF_ROWS)
