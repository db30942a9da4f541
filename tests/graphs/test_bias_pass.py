"""The pass that adds a dense layer's bias in the product, on graphs made by hand."""

from __future__ import annotations

import numpy as np
import pytest

for package in ("onnx", "onnx_ir", "onnxruntime"):
    pytest.importorskip(package)

from graphs.contract import ModelConfig  # noqa: E402
from graphs.passes.bias import fuse_bias  # noqa: E402
from tests.graphs.pass_helpers import edited, node_list, random_inputs  # noqa: E402
from tests.graphs.quantized_helpers import KERNEL, parse_named, run_stored  # noqa: E402

CONFIG = ModelConfig(6, 1, 1, 4, 4, 8)
DENSE = """
g (float[n, 4] x, float[4, 5] kernel, float[5] bias) => (float[n, 5] y)
{
    product = MatMul (x, kernel)
    y = Add (product, bias)
}
"""
WEIGHTS = {"kernel", "bias"}


@pytest.mark.parametrize(
    "edits", [[], [("Add (product, bias)", "Add (bias, product)")]], ids=["traced", "turned"]
)
def test_a_dense_layer(edits: list[tuple[str, str]]) -> None:
    program = parse_named(edited(DENSE, edits), WEIGHTS, CONFIG)
    assert fuse_bias(program) == 1
    (gemm,) = program.graph
    assert (gemm.op_type, gemm.outputs[0].name) == ("Gemm", "y")
    assert [value.name for value in gemm.inputs] == ["x", KERNEL, "bias"]
    assert not gemm.attributes
    inputs = random_inputs(program.graph)
    y = run_stored(program, {}, inputs)["y"]
    np.testing.assert_allclose(y, inputs["x"] @ inputs[KERNEL] + inputs["bias"], atol=1e-6)


OTHERS = {
    "no bias": [("Add (product, bias)", "Relu (product)")],
    "a product that others use": [
        ("(float[n, 5] y)", "(float[n, 5] y, float[n, 5] z)"),
        ("    y =", "    z = Abs (product)\n    y ="),
    ],
    "a product that others use afterwards": [
        ("(float[n, 5] y)", "(float[n, 5] y, float[n, 5] z)"),
        ("(product, bias)", "(product, bias)\n    z = Abs (product)"),
    ],
    "a product that is given out": [("(float[n, 5] y)", "(float[n, 5] y, float[n, 5] product)")],
    "a computed bias": [
        ("    y = Add (product, bias)", "    b = Abs (bias)\n    y = Add (product, b)")
    ],
    "a bias that is subtracted": [("Add (product", "Sub (product")],
    "a computed kernel": [
        ("    product = MatMul (x, kernel)", "    k = Abs (kernel)\n    product = MatMul (x, k)")
    ],
}


@pytest.mark.parametrize("edits", OTHERS.values(), ids=OTHERS)
def test_what_is_no_dense_layer_with_a_bias_stays(edits: list[tuple[str, str]]) -> None:
    program = parse_named(edited(DENSE, edits), WEIGHTS, CONFIG)
    nodes = node_list(program.graph)
    assert fuse_bias(program) == 0
    assert node_list(program.graph) == nodes


@pytest.mark.parametrize("name", ["embeddings/project_in/kernel", "head/embeddings"])
def test_other_matrices_stay(name: str) -> None:
    program = parse_named(DENSE, WEIGHTS, CONFIG, kernel=name)
    assert fuse_bias(program) == 0


def test_a_second_time_there_is_nothing_to_do() -> None:
    program = parse_named(DENSE, WEIGHTS, CONFIG)
    assert [fuse_bias(program), fuse_bias(program)] == [1, 0]
