"""The passes that put 4-bit products and tables where float ones were, on graphs made by hand."""

from __future__ import annotations

import numpy as np
import pytest

for package in ("onnx", "onnx_ir", "onnxruntime"):
    pytest.importorskip(package)

from graphs.contract import ModelConfig  # noqa: E402
from graphs.passes.int4 import quantize_layers_int4, quantize_tables_int4  # noqa: E402
from graphs.passes.matching import FUSED_DOMAIN  # noqa: E402
from tests.graphs.pass_helpers import Arrays, edited, node_list, ops, with_views  # noqa: E402
from tests.graphs.quantized_helpers import HEAD, KERNEL, TABLE, parse_named, run_stored  # noqa: E402

CONFIG = ModelConfig(6, 1, 1, 32, 96, 8)  # blocks of 32: three of them in the layer's matrix
BLOCK = 32
RANDOM = np.random.default_rng(0)
DENSE = """
g (float[n, 96] x, float[96, 32] kernel, float[32] bias) => (float[n, 32] y)
{
    product = MatMul (x, kernel)
    y = Add (product, bias)
}
"""
WEIGHTS = {"kernel", "bias"}
BIAS = RANDOM.standard_normal(32).astype(np.float32)


def activations(*shape: int) -> np.ndarray:
    """Whole numbers whose blocks all reach 127: int8 codes hold them exactly."""
    x = RANDOM.integers(-127, 128, shape).astype(np.float32)
    x[..., ::BLOCK] = 127
    return x


def stored_matrix(name: str, outputs: int, inputs: int) -> tuple[Arrays, np.ndarray]:
    """The tensors of a random matrix, packed by hand, and the matrix [outputs, inputs]."""
    blocks = inputs // BLOCK
    codes = RANDOM.integers(0, 16, (outputs, blocks, BLOCK))
    zeros = RANDOM.integers(0, 16, (outputs, blocks))
    scales = RANDOM.choice([0.25, 0.5, 2.0], (outputs, blocks)).astype(np.float32)
    padded = np.pad(zeros, ((0, 0), (0, blocks % 2)))
    stored: Arrays = {
        f"{name}.int4": (codes[..., ::2] + 16 * codes[..., 1::2]).astype(np.uint8),
        f"{name}.int4.scales": scales,
        f"{name}.int4.zero_points": (padded[:, ::2] + 16 * padded[:, 1::2]).astype(np.uint8),
    }
    return stored, ((codes - zeros[..., None]) * scales[..., None]).reshape(outputs, inputs)


# === Layers ===


@pytest.mark.parametrize("rows", ["n", "n, 2"])
def test_a_dense_layer(rows: str) -> None:
    program = parse_named(edited(DENSE, [("[n, ", f"[{rows}, ")]), WEIGHTS, CONFIG)
    assert quantize_layers_int4(program) == 1
    (node,) = program.graph
    assert (node.op_type, node.outputs[0].name) == ("MatMulNBits", "y")
    stored, matrix = stored_matrix(KERNEL, 32, 96)
    assert [v and v.name for v in node.inputs] == ["x", *stored, None, "bias"]
    attributes = {name: attribute.as_int() for name, attribute in node.attributes.items()}
    assert attributes == {"K": 96, "N": 32, "bits": 4, "block_size": 32, "accuracy_level": 4}
    assert program.model.opset_imports[FUSED_DOMAIN] == 1
    assert all(program.shape_of(name) == value.shape for name, value in stored.items())
    assert not program.weights[KERNEL].uses()
    x = activations(*([3, 96] if rows == "n" else [3, 2, 96]))
    y = run_stored(program, stored, {"x": x, "bias": BIAS})["y"]
    np.testing.assert_allclose(y, x @ matrix.T + BIAS, rtol=1e-5, atol=1e-3)


def test_a_product_without_bias() -> None:
    program = parse_named(edited(DENSE, [("Add (product, bias)", "Relu (product)")]), WEIGHTS, CONFIG)
    assert quantize_layers_int4(program) == 1
    assert ops(program.graph) == {"MatMulNBits": 1, "Relu": 1}
    assert len(program.graph[0].inputs) == 4
    stored, matrix = stored_matrix(KERNEL, 32, 96)
    x = activations(2, 96)
    y = run_stored(program, stored, {"x": x})["y"]
    np.testing.assert_allclose(y, np.maximum(x @ matrix.T, 0), rtol=1e-5, atol=1e-3)


def test_an_activation_before_the_product_stays() -> None:
    edits = [("    product = MatMul (x", "    active = Relu (x)\n    product = MatMul (active")]
    program = parse_named(edited(DENSE, edits), WEIGHTS, CONFIG)
    assert quantize_layers_int4(program) == 1
    assert ops(program.graph) == {"Relu": 1, "MatMulNBits": 1}


OTHERS = {
    "a computed kernel": [
        ("    product = MatMul (x, kernel)", "    k = Abs (kernel)\n    product = MatMul (x, k)")
    ],
    "the kernel on the left": [
        ("[n, 96] x", "[32, 3] x"),
        ("[n, 32] y", "[96, 3] y"),
        ("[32] bias", "[3] bias"),
        ("(x, kernel)", "(kernel, x)"),
    ],
    "another operator": [("MatMul", "Gemm")],
}


@pytest.mark.parametrize("edits", OTHERS.values(), ids=OTHERS)
def test_what_is_no_product_with_a_layer_s_matrix_stays(edits: list[tuple[str, str]]) -> None:
    program = parse_named(edited(DENSE, edits), WEIGHTS, CONFIG)
    nodes = node_list(program.graph)
    assert quantize_layers_int4(program) == 0
    assert node_list(program.graph) == nodes
    assert FUSED_DOMAIN not in program.model.opset_imports


@pytest.mark.parametrize("name", ["embeddings/project_in/kernel", "project_out/kernel"])
def test_projections_stay(name: str) -> None:
    program = parse_named(DENSE, WEIGHTS, CONFIG, kernel=name)
    assert quantize_layers_int4(program) == 0
    assert ops(program.graph) == {"MatMul": 1, "Add": 1}


def test_widths_that_no_block_divides() -> None:
    program = parse_named(DENSE, WEIGHTS, ModelConfig(6, 1, 1, 32, 72, 8))
    with pytest.raises(ValueError, match="blocks need widths that 16 divides"):
        quantize_layers_int4(program)


# === Tables ===

TABLES = """
g (int64[n] ids, float[n, 32] x, float[6, 32] table) => (float[n, 32] rows, float[n, 6] logits)
{
    rows = Gather <axis = 0> (table, ids)
    logits = Gemm <transB = 1> (x, table)
}
"""
OWN_HEAD = [
    ("float[6, 32] table)", "float[6, 32] table, float[6, 32] head)"),
    ("(x, table)", "(x, head)"),
]
IDS = np.array([5, 0, 3])


@pytest.mark.parametrize("tied", [True, False])
def test_tables(tied: bool) -> None:
    text = TABLES if tied else edited(TABLES, OWN_HEAD)
    program = parse_named(text, {"table", "head"} - ({"head"} if tied else set()), CONFIG)
    assert quantize_tables_int4(program) == 2
    assert ops(program.graph) == {"GatherBlockQuantized": 1, "MatMulNBits": 1}
    assert program.views == {f"{TABLE}.int4.rows": f"{TABLE}.int4"}
    assert program.shape_of(f"{TABLE}.int4.rows") == (6, 16)
    stored, table = stored_matrix(TABLE, 6, 32)
    head = table
    if not tied:
        stored_head, head = stored_matrix(HEAD, 6, 32)
        stored |= stored_head
    x = activations(3, 32)
    found = run_stored(program, with_views(program, stored), {"ids": IDS, "x": x})
    np.testing.assert_array_equal(found["rows"], table[IDS])
    np.testing.assert_allclose(found["logits"], x @ head.T, rtol=1e-5, atol=1e-3)


def test_an_odd_number_of_blocks_in_a_table() -> None:
    """Zero points are two a byte, and a row's begin with a byte of their own."""
    config = ModelConfig(6, 1, 1, 96, 96, 8)
    program = parse_named(edited(TABLES, [("32]", "96]")]), {"table"}, config)
    assert quantize_tables_int4(program) == 2
    stored, table = stored_matrix(TABLE, 6, 96)
    assert stored[f"{TABLE}.int4.zero_points"].shape == (6, 2)
    x = activations(3, 96)
    found = run_stored(program, with_views(program, stored), {"ids": IDS, "x": x})
    np.testing.assert_array_equal(found["rows"], table[IDS])
    np.testing.assert_allclose(found["logits"], x @ table.T, rtol=1e-5, atol=1e-3)


OTHER_TABLES = {
    "columns": ([("[n, 32] rows", "[6, n] rows"), ("axis = 0", "axis = 1")], 1),
    "a head that is not transposed": (
        [("[n, 32] x", "[n, 6] x"), ("[n, 6] logits", "[n, 32] logits"), (" <transB = 1>", "")],
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
    assert quantize_tables_int4(program) == count
    assert (FUSED_DOMAIN in program.model.opset_imports) == bool(count)


def test_a_second_time_there_is_nothing_to_do() -> None:
    for text, weights, run in (
        (DENSE, WEIGHTS, quantize_layers_int4),
        (TABLES, {"table"}, quantize_tables_int4),
    ):
        program = parse_named(text, weights, CONFIG)
        run(program)
        nodes = node_list(program.graph)
        assert run(program) == 0
        assert node_list(program.graph) == nodes
