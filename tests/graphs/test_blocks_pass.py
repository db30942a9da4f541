"""The passes that put products with blocks of codes beside floats of 16 bits, on hand-made graphs."""

from __future__ import annotations

import numpy as np
import pytest

for package in ("onnx", "onnx_ir", "onnxruntime"):
    pytest.importorskip(package)

from graphs.contract import ModelConfig  # noqa: E402
from graphs.passes.blocks import block_layers_int4, block_layers_int8  # noqa: E402
from graphs.passes.half_floats import narrow_to_fp16  # noqa: E402
from graphs.passes.matching import FUSED_DOMAIN  # noqa: E402
from tests.graphs.pass_helpers import Arrays, edited, node_list, ops  # noqa: E402
from tests.graphs.quantized_helpers import KERNEL, TABLE, parse_named, run_stored  # noqa: E402

CONFIG = ModelConfig(6, 1, 1, 32, 96, 8)  # blocks of 32: three of them in the layer's matrix
BLOCK, INPUTS, OUTPUTS = 32, 96, 32
RANDOM = np.random.default_rng(0)
DENSE = """
g (float[n, 96] past_key, float[96, 32] kernel, float[32] bias) => (float[n, 32] logits)
{
    product = MatMul (past_key, kernel)
    logits = Add (product, bias)
}
"""
WEIGHTS = {"kernel", "bias"}
PASSES = {4: block_layers_int4, 8: block_layers_int8}
NAMES = {
    4: [f"{KERNEL}.int4.fp16{part}" for part in ("", ".scales", ".zero_points")],
    8: [f"{KERNEL}.int8.fp16{part}" for part in ("", ".scales")],
}


@pytest.fixture(params=PASSES)
def bits(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def stored_matrix(bits: int) -> tuple[Arrays, np.ndarray]:
    """The tensors of a random matrix, packed by hand, and the matrix [outputs, inputs]."""
    blocks = INPUTS // BLOCK
    codes = RANDOM.integers(0, 2**bits, (OUTPUTS, blocks, BLOCK))
    scales = RANDOM.choice([1 / 64, 1 / 128], (OUTPUTS, blocks)).astype(np.float16)
    zeros = np.full((OUTPUTS, blocks), 128)
    packed = [codes.astype(np.uint8), scales]
    if bits == 4:
        zeros = RANDOM.integers(0, 16, (OUTPUTS, blocks))
        padded = np.pad(zeros, ((0, 0), (0, blocks % 2)))
        packed[0] = (codes[..., ::2] + 16 * codes[..., 1::2]).astype(np.uint8)
        packed.append((padded[:, ::2] + 16 * padded[:, 1::2]).astype(np.uint8))
    matrix = ((codes - zeros[..., None]) * scales[..., None].astype(np.float32)).reshape(
        OUTPUTS, INPUTS
    )
    return dict(zip(NAMES[bits], packed, strict=True)), matrix


@pytest.mark.parametrize("rows", ["n", "n, 2"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_dense_layer(bits: int, rows: str, bias: bool) -> None:
    edits = [("[n, ", f"[{rows}, ")]
    if not bias:
        edits += [("Add (product, bias)", "Relu (product)")]
    program = parse_named(edited(DENSE, edits), WEIGHTS, CONFIG)
    assert PASSES[bits](program) == 1
    node = program.graph[0]
    assert (node.op_type, node.domain) == ("MatMulNBits", FUSED_DOMAIN)
    operands: list[str | None] = ["past_key", *NAMES[bits]]
    if bias:
        assert len(program.graph) == 1
        operands += [None] * (5 - len(operands)) + ["bias"]
    assert [value and value.name for value in node.inputs] == operands
    attributes = {name: attribute.as_int() for name, attribute in node.attributes.items()}
    # Of CPUs alone is the level of accuracy.
    assert attributes == {"K": INPUTS, "N": OUTPUTS, "bits": bits, "block_size": BLOCK}
    stored, matrix = stored_matrix(bits)
    for name, value in stored.items():
        assert program.shape_of(name) == value.shape
        assert program.weights[name].dtype.numpy() == value.dtype
    assert not program.weights[KERNEL].uses()
    assert program.model.opset_imports[FUSED_DOMAIN] == 1
    # With floats of 16 bits around it, as it is meant.
    assert narrow_to_fp16(program) == int(bias)
    shape = [3, INPUTS] if rows == "n" else [3, 2, INPUTS]
    x = (RANDOM.integers(-8, 9, shape) / 8).astype(np.float16)
    added = (RANDOM.integers(-8, 9, OUTPUTS) / 8).astype(np.float16)
    found = run_stored(program, {**stored, "bias.fp16": added}, {"past_key": x})["logits"]
    wanted = x.astype(np.float32) @ matrix.T
    wanted = wanted + added if bias else np.maximum(wanted, 0)
    assert wanted.std() > 0.2
    np.testing.assert_allclose(found, wanted, rtol=2**-10, atol=2**-8)


def test_matrices_outside_the_layers_stay(bits: int) -> None:
    for name in ("embeddings/project_in/kernel", "project_out/kernel", TABLE):
        program = parse_named(DENSE, WEIGHTS, CONFIG, kernel=name)
        assert PASSES[bits](program) == 0
        assert ops(program.graph) == {"MatMul": 1, "Add": 1}
        assert FUSED_DOMAIN not in program.model.opset_imports


OTHERS = {
    "a computed kernel": [
        (
            "    product = MatMul (past_key, kernel)",
            "    k = Abs (kernel)\n    product = MatMul (past_key, k)",
        )
    ],
    "the kernel on the left": [
        ("[n, 96] past_key", "[32, 3] past_key"),
        ("[n, 32] logits", "[96, 3] logits"),
        ("[32] bias", "[3] bias"),
        ("(past_key, kernel)", "(kernel, past_key)"),
    ],
    "another operator": [("MatMul", "Gemm")],
}


@pytest.mark.parametrize("edits", OTHERS.values(), ids=OTHERS)
def test_what_is_no_product_with_a_layer_s_matrix_stays(
    bits: int, edits: list[tuple[str, str]]
) -> None:
    program = parse_named(edited(DENSE, edits), WEIGHTS, CONFIG)
    nodes = node_list(program.graph)
    assert PASSES[bits](program) == 0
    assert node_list(program.graph) == nodes


def test_widths_that_no_block_divides(bits: int) -> None:
    program = parse_named(DENSE, WEIGHTS, ModelConfig(6, 1, 1, 32, 72, 8))
    with pytest.raises(ValueError, match="codes in blocks need widths that 16 divides"):
        PASSES[bits](program)


def test_a_second_time_there_is_nothing_to_do(bits: int) -> None:
    program = parse_named(DENSE, WEIGHTS, CONFIG)
    assert PASSES[bits](program) == 1
    nodes = node_list(program.graph)
    for run in PASSES.values():
        assert run(program) == 0
        assert node_list(program.graph) == nodes
