"""The pass that joins a branch, its residual and the norm of their sum, on graphs made by hand."""

from __future__ import annotations

import pytest

for package in ("onnx", "onnx_ir", "onnxruntime"):
    pytest.importorskip(package)

from graphs.passes.matching import FUSED_DOMAIN  # noqa: E402
from graphs.passes.skip_layer_norm import fuse_skip_layer_norm  # noqa: E402
from tests.graphs.pass_helpers import assert_rewritten, edited, ops  # noqa: E402

JOINED = """
g (float[n, 3] inner, float[n, 4] x, float[3, 4] kernel, float[4] bias, float[4] gamma, float[4] beta)
=> (float[n, 4] y, float[n, 4] total)
{
    residual = Neg (x)
    product = MatMul (inner, kernel)
    branch = Add (product, bias)
    total = Add (residual, branch)
    y = LayerNormalization <axis = -1, epsilon = 0.25> (total, gamma, beta)
}
"""
WEIGHTS = {"kernel", "bias", "gamma", "beta"}
NO_BIAS = [
    ("    branch = Add (product, bias)\n", ""),
    ("Add (residual, branch)", "Add (residual, product)"),
]

MATCHING = {
    "as it is traced": ([], ["product", "residual", "gamma", "beta", "bias"]),
    "sum turned": (
        [("Add (residual, branch)", "Add (branch, residual)")],
        ["product", "residual", "gamma", "beta", "bias"],
    ),
    "bias turned": (
        [("Add (product, bias)", "Add (bias, product)")],
        ["product", "residual", "gamma", "beta", "bias"],
    ),
    "no bias": (NO_BIAS, ["product", "residual", "gamma", "beta", None]),
    "no offset": ([("gamma, beta)\n}", "gamma)\n}")], ["product", "residual", "gamma", None, "bias"]),
    "neither": (
        [*NO_BIAS, ("gamma, beta)\n}", "gamma)\n}")],
        ["product", "residual", "gamma", None, None],
    ),
    "a sum that nothing else needs": (
        [(", float[n, 4] total)", ")")],
        ["product", "residual", "gamma", "beta", "bias"],
    ),
}


@pytest.mark.parametrize(("edits", "names"), MATCHING.values(), ids=MATCHING)
def test_sums_in_other_orders(edits: list[tuple[str, str]], names: list[str | None]) -> None:
    program = assert_rewritten(edited(JOINED, edits), WEIGHTS, fuse_skip_layer_norm, 1)
    assert ops(program.graph) == {"Neg": 1, "MatMul": 1, "SkipLayerNormalization": 1}
    norm = next(node for node in program.graph if node.domain == FUSED_DOMAIN)
    assert [value and value.name for value in norm.inputs] == names
    assert norm.attributes["epsilon"].as_float() == 0.25
    assert norm.outputs[0].name == "y"
    assert program.model.opset_imports[FUSED_DOMAIN] == 1


def test_the_sum_is_the_next_residual() -> None:
    text = edited(
        JOINED,
        [
            ("(float[n, 4] y, float[n, 4] total)", "(float[n, 4] y, float[n, 4] y2)"),
            ("float[4] bias,", "float[4, 4] kernel2, float[4] bias,"),
            (
                "beta)\n}",
                "beta)\n    second = MatMul (y, kernel2)\n    total2 = Add (total, second)\n"
                "    y2 = LayerNormalization <axis = -1, epsilon = 0.5> (total2, beta, gamma)\n}",
            ),
        ],
    )
    program = assert_rewritten(text, {*WEIGHTS, "kernel2"}, fuse_skip_layer_norm, 2)
    first, second = (node for node in program.graph if node.domain == FUSED_DOMAIN)
    assert second.inputs[1] is first.outputs[3]
    assert second.inputs[4] is None
    assert [node.attributes["epsilon"].as_float() for node in (first, second)] == [0.25, 0.5]


OTHERS = {
    "no norm": [
        ("LayerNormalization <axis = -1, epsilon = 0.25> (total, gamma, beta)", "Abs (total)"),
    ],
    "another axis": [
        ("n, ", "2, "),
        ("axis = -1", "axis = 0"),
        ("float[4] gamma, float[4] beta", "float[2, 4] gamma, float[2, 4] beta"),
    ],
    "a difference": [("Add (residual, branch)", "Sub (residual, branch)")],
    "a residual that is scaled by the branch": [("Add (residual, branch)", "Mul (residual, branch)")],
    "a branch that is no product": [
        ("float[n, 3] inner", "float[n, 4] inner"),
        ("MatMul (inner, kernel)", "Abs (inner)"),
    ],
    "a branch that is activated": [
        ("    total =", "    active = Relu (branch)\n    total ="),
        ("Add (residual, branch)", "Add (residual, active)"),
    ],
    "a branch that others use": [
        ("float[n, 4] total)", "float[n, 4] total, float[n, 4] extra)"),
        ("    total =", "    extra = Abs (branch)\n    total ="),
    ],
    "a product that others use, without bias": [
        *NO_BIAS,
        ("float[n, 4] total)", "float[n, 4] total, float[n, 4] extra)"),
        ("    total =", "    extra = Abs (product)\n    total ="),
    ],
    "a branch twice": [("Add (residual, branch)", "Add (branch, branch)")],
    "no residual": [("Add (residual, branch)", "Add (product, bias)")],
    "a constant for a residual": [
        ("{\n", "<float[4] ones = {1, 1, 1, 1}>\n{\n"),
        ("Add (residual, branch)", "Add (ones, branch)"),
    ],
    "a bias that is computed": [
        ("    branch", "    half = Abs (bias)\n    branch"),
        ("Add (product, bias)", "Add (product, half)"),
    ],
    "a bias that is multiplied": [("Add (product, bias)", "Mul (product, bias)")],
}


@pytest.mark.parametrize("edits", OTHERS.values(), ids=OTHERS)
def test_what_is_not_a_norm_of_a_joined_branch_stays(edits: list[tuple[str, str]]) -> None:
    program = assert_rewritten(edited(JOINED, edits), WEIGHTS, fuse_skip_layer_norm, 0)
    assert FUSED_DOMAIN not in program.model.opset_imports


def test_a_bias_that_is_no_weight_stays() -> None:
    assert_rewritten(JOINED, WEIGHTS - {"bias"}, fuse_skip_layer_norm, 0)
