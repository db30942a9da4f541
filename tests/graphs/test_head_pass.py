"""The pass that lets the head read its table as it is stored, on graphs made by hand."""

from __future__ import annotations

import pytest

for package in ("onnx", "onnx_ir", "onnxruntime"):
    pytest.importorskip(package)

from graphs.passes.head import fuse_head  # noqa: E402
from tests.graphs.pass_helpers import assert_rewritten, edited, ops  # noqa: E402

HEAD = """
g (float[n, 4] x, float[6, 4] w) => (float[n, 6] y)
{
    turned = Transpose <perm = [1, 0]> (w)
    y = MatMul (x, turned)
}
"""


@pytest.mark.parametrize("edits", [[], [(" <perm = [1, 0]>", "")]], ids=["perm", "default perm"])
def test_a_head_over_a_transposed_weight(edits: list[tuple[str, str]]) -> None:
    program = assert_rewritten(edited(HEAD, edits), {"w"}, fuse_head, 1)
    (gemm,) = program.graph
    assert (gemm.op_type, gemm.attributes["transB"].as_int()) == ("Gemm", 1)
    assert [value.name for value in gemm.inputs] == ["x", "w"]


def test_two_products_with_one_weight() -> None:
    text = edited(
        HEAD,
        [
            ("=> (float[n, 6] y)", "=> (float[n, 6] y, float[n, 6] z)"),
            ("    y =", "    other = Abs (x)\n    z = MatMul (other, turned)\n    y ="),
        ],
    )
    program = assert_rewritten(text, {"w"}, fuse_head, 2)
    assert ops(program.graph) == {"Gemm": 2, "Abs": 1}


def test_a_transpose_that_others_use_stays() -> None:
    text = edited(HEAD, [("=> (float[n, 6] y)", "=> (float[n, 6] y, float[4, 6] turned)")])
    program = assert_rewritten(text, {"w"}, fuse_head, 1)
    assert ops(program.graph) == {"Gemm": 1, "Transpose": 1}


OTHER_HEADS = {
    "no transpose": [("float[6, 4] w", "float[4, 6] w"), ("Transpose <perm = [1, 0]>", "Identity")],
    "weight used as it is": [
        ("float[6, 4] w", "float[4, 6] w"),
        ("    turned = Transpose <perm = [1, 0]> (w)\n", ""),
        ("turned", "w"),
    ],
    "a permutation that changes nothing": [("float[6, 4] w", "float[4, 6] w"), ("[1, 0]", "[0, 1]")],
    "the weight on the left": [
        ("[n, 4] x", "[6, 3] x"),
        ("[n, 6] y", "[4, 3] y"),
        ("MatMul (x, turned)", "MatMul (turned, x)"),
    ],
    "not a product": [("float[n, 4] x", "float[4, 6] x"), ("MatMul", "Add"), ("[n, 6] y", "[4, 6] y")],
    "a computed matrix": [
        ("    turned", "    other = Abs (w)\n    turned"),
        ("[1, 0]> (w)", "[1, 0]> (other)"),
    ],
    "rows in three dimensions": [("[n, 4] x", "[n, 3, 4] x"), ("[n, 6] y", "[n, 3, 6] y")],
    "a stack of matrices": [
        ("[n, 4] x, float[6, 4] w", "[2, 3, 4] x, float[2, 6, 4] w"),
        ("[n, 6] y", "[2, 3, 6] y"),
        ("[1, 0]", "[0, 2, 1]"),
    ],
    "a stack turned around": [
        ("[n, 4] x, float[6, 4] w", "[2, 3, 4] x, float[6, 4, 2] w"),
        ("[n, 6] y", "[2, 3, 6] y"),
        (" <perm = [1, 0]>", ""),
    ],
}


@pytest.mark.parametrize("edits", OTHER_HEADS.values(), ids=OTHER_HEADS)
def test_what_is_not_a_head_stays(edits: list[tuple[str, str]]) -> None:
    assert_rewritten(edited(HEAD, edits), {"w"}, fuse_head, 0)


def test_a_transposed_activation_stays() -> None:
    assert_rewritten(HEAD, set(), fuse_head, 0)
