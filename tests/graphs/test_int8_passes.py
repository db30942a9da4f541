"""The passes that put 8-bit products and tables where float ones were, on graphs made by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

for package in ("onnx", "onnx_ir", "onnxruntime"):
    pytest.importorskip(package)

from graphs.contract import ModelConfig  # noqa: E402
from graphs.passes.int8 import quantize_layers_int8, quantize_tables_int8  # noqa: E402
from graphs.passes.matching import FUSED_DOMAIN  # noqa: E402
from tests.graphs.pass_helpers import edited, node_list, ops, with_views  # noqa: E402
from tests.graphs.quantized_helpers import HEAD, KERNEL, TABLE, parse_named, run_stored  # noqa: E402

CONFIG = ModelConfig(6, 1, 1, 4, 4, 8)
RANDOM = np.random.default_rng(0)
DENSE = """
g (float[n, 4] x, float[4, 5] kernel, float[5] bias) => (float[n, 5] y)
{
    product = MatMul (x, kernel)
    y = Add (product, bias)
}
"""
WEIGHTS = {"kernel", "bias"}
STORED = {
    f"{KERNEL}.int8": RANDOM.integers(-127, 128, (4, 5)).astype(np.int8),
    f"{KERNEL}.int8.scales": RANDOM.uniform(0.01, 0.1, 5).astype(np.float32),
    f"{KERNEL}.input_scale": np.array(0.02, np.float32),
    f"{KERNEL}.input_zero_point": np.array(100, np.uint8),
}
BIAS = RANDOM.standard_normal(5).astype(np.float32)
X = RANDOM.standard_normal((3, 4)).astype(np.float32) * 3  # some of it beyond what uint8 holds


def quantized(x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray) -> np.ndarray:
    """What activations become, in numbers."""
    zero = float(zero_point)
    return (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale


def product(x: np.ndarray, zero_point: np.ndarray = STORED[f"{KERNEL}.input_zero_point"]) -> np.ndarray:
    """What the rewritten product is to be, without a bias."""
    kernel = STORED[f"{KERNEL}.int8"] * STORED[f"{KERNEL}.int8.scales"].astype(np.float64)
    return quantized(x, STORED[f"{KERNEL}.input_scale"], zero_point) @ kernel


# === Layers ===


@pytest.mark.parametrize(
    "edits", [[], [("Add (product, bias)", "Add (bias, product)")]], ids=["traced", "turned"]
)
def test_a_dense_layer(edits: list[tuple[str, str]]) -> None:
    program = parse_named(edited(DENSE, edits), WEIGHTS, CONFIG)
    assert quantize_layers_int8(program) == 1
    assert node_list(program.graph)[-1] == ("MatMulIntegerToFloat", "y")
    assert ops(program.graph) == {"QuantizeLinear": 1, "MatMulIntegerToFloat": 1}
    scale, zero_point = f"{KERNEL}.input_scale", f"{KERNEL}.input_zero_point"
    found = {n.op_type: [v and v.name for v in n.inputs] for n in program.graph}
    assert found["QuantizeLinear"] == ["x", scale, zero_point]
    codes, scales = f"{KERNEL}.int8", f"{KERNEL}.int8.scales"
    assert found["MatMulIntegerToFloat"][1:] == [codes, scale, scales, zero_point, None, "bias"]
    assert program.model.opset_imports[FUSED_DOMAIN] == 1
    assert {name: program.weights[name].dtype.numpy() for name in STORED} == {
        name: value.dtype for name, value in STORED.items()
    }
    assert all(program.shape_of(name) == value.shape for name, value in STORED.items())
    assert program.views == {}
    assert not program.weights[KERNEL].uses()
    y = run_stored(program, STORED, {"x": X, "bias": BIAS})["y"]
    np.testing.assert_allclose(y, product(X) + BIAS, atol=1e-5)
    assert np.abs(X).max() > 0.02 * 155  # clipping shows


def test_rows_of_tokens() -> None:
    program = parse_named(edited(DENSE, [("n, ", "n, 2, ")]), WEIGHTS, CONFIG)
    assert quantize_layers_int8(program) == 1
    x = RANDOM.standard_normal((3, 2, 4)).astype(np.float32)
    y = run_stored(program, STORED, {"x": x, "bias": BIAS})["y"]
    np.testing.assert_allclose(y, product(x) + BIAS, atol=1e-5)


# What is done with the product instead, and what that makes of it.
OTHER_BIASES = {
    "none": ([("Add (product, bias)", "Abs (product)")], lambda found: np.abs(found)),
    "product used twice": (
        [
            ("(float[n, 5] y)", "(float[n, 5] y, float[n, 5] z)"),
            ("    y =", "    z = Abs (product)\n    y ="),
        ],
        lambda found: found + BIAS,
    ),
    "computed": (
        [("    y = Add (product, bias)", "    b = Abs (bias)\n    y = Add (product, b)")],
        lambda found: found + np.abs(BIAS),
    ),
    "subtracted": ([("Add (product", "Sub (product")], lambda found: found - BIAS),
}


@pytest.mark.parametrize(("edits", "after"), OTHER_BIASES.values(), ids=OTHER_BIASES)
def test_what_is_no_bias_stays(
    edits: list[tuple[str, str]], after: Callable[[np.ndarray], np.ndarray]
) -> None:
    program = parse_named(edited(DENSE, edits), WEIGHTS, CONFIG)
    before = ops(program.graph)
    assert quantize_layers_int8(program) == 1
    put = {"QuantizeLinear": 1, "MatMulIntegerToFloat": 1}
    assert ops(program.graph) == before - Counter({"MatMul": 1}) + Counter(put)
    (fused,) = (node for node in program.graph if node.domain == FUSED_DOMAIN)
    assert fused.inputs[6] is None
    y = run_stored(program, STORED, {"x": X, "bias": BIAS})["y"]
    np.testing.assert_allclose(y, after(product(X)), atol=1e-5)


RELU = [("    product = MatMul (x", "    active = Relu (x)\n    product = MatMul (active")]


@pytest.mark.parametrize("used_twice", [False, True])
def test_quantizing_clips_at_zero_in_place_of_a_relu(used_twice: bool) -> None:
    also = [("(float[n, 5] y)", "(float[n, 5] y, float[n, 4] active)")] if used_twice else []
    program = parse_named(edited(DENSE, [*RELU, *also]), WEIGHTS, CONFIG)
    assert quantize_layers_int8(program) == 1
    assert ops(program.graph)["Relu"] == used_twice
    (quantize,) = (node for node in program.graph if node.op_type == "QuantizeLinear")
    assert quantize.inputs[0].name == "x"
    zero = np.array(0, np.uint8)
    stored = {**STORED, f"{KERNEL}.input_zero_point": zero}
    y = run_stored(program, stored, {"x": X, "bias": BIAS})["y"]
    np.testing.assert_allclose(y, product(np.maximum(X, 0), zero) + BIAS, atol=1e-5)


def test_other_activations_stay() -> None:
    program = parse_named(edited(DENSE, [*RELU, ("Relu", "Tanh")]), WEIGHTS, CONFIG)
    assert quantize_layers_int8(program) == 1
    assert ops(program.graph)["Tanh"] == 1


OTHERS = {
    "a computed kernel": [
        ("    product = MatMul (x, kernel)", "    k = Abs (kernel)\n    product = MatMul (x, k)")
    ],
    "the kernel on the left": [
        ("[n, 4] x", "[5, 3] x"),
        ("[n, 5] y", "[4, 3] y"),
        ("[5] bias", "[3] bias"),
        ("(x, kernel)", "(kernel, x)"),
    ],
    "another operator": [("MatMul", "Gemm")],
}


@pytest.mark.parametrize("edits", OTHERS.values(), ids=OTHERS)
def test_what_is_no_product_with_a_layer_s_matrix_stays(edits: list[tuple[str, str]]) -> None:
    program = parse_named(edited(DENSE, edits), WEIGHTS, CONFIG)
    nodes = node_list(program.graph)
    assert quantize_layers_int8(program) == 0
    assert node_list(program.graph) == nodes
    assert FUSED_DOMAIN not in program.model.opset_imports


@pytest.mark.parametrize(
    "name", ["embeddings/project_in/kernel", "project_out/kernel", "transformer_layer_0/output/bias"]
)
def test_other_matrices_stay(name: str) -> None:
    program = parse_named(DENSE, WEIGHTS, CONFIG, kernel=name)
    assert quantize_layers_int8(program) == 0
    assert ops(program.graph) == {"MatMul": 1, "Add": 1}


# === Tables ===

TABLES = """
g (int64[n] ids, float[n, 4] x, float[6, 4] table) => (float[n, 4] rows, float[n, 6] logits)
{
    rows = Gather <axis = 0> (table, ids)
    logits = Gemm <transB = 1> (x, table)
}
"""
OWN_HEAD = [("float[6, 4] table)", "float[6, 4] table, float[6, 4] head)"), ("(x, table)", "(x, head)")]
IDS = np.array([5, 0, 3])
CODES = RANDOM.integers(-127, 128, (6, 4)).astype(np.int8)
SCALES = RANDOM.uniform(0.01, 0.1, 6).astype(np.float32)
FACTORS = RANDOM.uniform(0.5, 2, 4).astype(np.float32)


def head_values(name: str) -> dict[str, np.ndarray]:
    return {
        f"{name}.int8": CODES,
        f"{name}.int8.scales": SCALES,
        f"{name}.input_scale": np.array(0.03, np.float32),
        f"{name}.input_zero_point": np.array(140, np.uint8),
        f"{name}.factors": FACTORS,
    }


def expected_logits() -> np.ndarray:
    table = CODES * SCALES[:, None].astype(np.float64)
    return quantized(X * FACTORS, np.array(0.03), np.array(140)) @ table.T


def test_a_tied_table_is_stored_once() -> None:
    """Its rows and the head's inputs are multiplied with the same factors."""
    program = parse_named(TABLES, {"table"}, CONFIG)
    assert quantize_tables_int8(program) == 2
    nodes = {"Gather": 2, "Cast": 1, "Mul": 3, "QuantizeLinear": 1, "Transpose": 1, "QGemm": 1}
    assert ops(program.graph) == nodes
    assert program.views == {
        f"{TABLE}.int8.rows": f"{TABLE}.int8",
        f"{TABLE}.int8.rows.scales": f"{TABLE}.int8.scales",
    }
    assert program.shape_of(f"{TABLE}.int8.rows.scales") == (6, 1)
    assert not program.weights[TABLE].uses()
    stored = with_views(program, head_values(TABLE))
    found = run_stored(program, stored, {"ids": IDS, "x": X})
    rows = CODES[IDS] * SCALES[IDS, None] * FACTORS
    np.testing.assert_allclose(found["rows"], rows, rtol=1e-6)
    np.testing.assert_allclose(found["logits"], expected_logits(), atol=1e-5)


def test_two_tables() -> None:
    config = replace(CONFIG, tied_head=False)
    program = parse_named(edited(TABLES, OWN_HEAD), {"table", "head"}, config)
    assert quantize_tables_int8(program) == 2
    assert ops(program.graph)["Mul"] == 2  # a table of its own carries no factors
    assert f"{TABLE}.factors" not in program.weights
    assert program.views == {}
    stored = {
        **head_values(HEAD),
        f"{TABLE}.int8.rows": CODES[::-1].copy(),
        f"{TABLE}.int8.rows.scales": SCALES[:, None],
    }
    found = run_stored(program, stored, {"ids": IDS, "x": X})
    np.testing.assert_allclose(found["rows"], CODES[::-1][IDS] * SCALES[IDS, None], rtol=1e-6)
    np.testing.assert_allclose(found["logits"], expected_logits(), atol=1e-5)


OTHER_TABLES = {
    "columns": ([("[n, 4] rows", "[6, n] rows"), ("axis = 0", "axis = 1")], 1),
    "a head that is not transposed": (
        [("[n, 4] x", "[n, 6] x"), ("[n, 6] logits", "[n, 4] logits"), (" <transB = 1>", "")],
        1,
    ),
    "a computed table": (
        [
            ("    rows =", "    other = Abs (table)\n    rows ="),
            ("(table, ids)", "(other, ids)"),
            ("(x, table)", "(x, other)"),
        ],
        0,
    ),
}


@pytest.mark.parametrize(("edits", "count"), OTHER_TABLES.values(), ids=OTHER_TABLES)
def test_what_is_no_lookup_or_head_is_not_counted(edits: list[tuple[str, str]], count: int) -> None:
    program = parse_named(edited(TABLES, edits), {"table"}, CONFIG)
    assert quantize_tables_int8(program) == count
    assert (FUSED_DOMAIN in program.model.opset_imports) == bool(count)


def test_a_second_time_there_is_nothing_to_do() -> None:
    for text, weights, run in (
        (DENSE, WEIGHTS, quantize_layers_int8),
        (TABLES, {"table"}, quantize_tables_int8),
    ):
        program = parse_named(text, weights, CONFIG)
        run(program)
        nodes = node_list(program.graph)
        assert run(program) == 0
        assert node_list(program.graph) == nodes
