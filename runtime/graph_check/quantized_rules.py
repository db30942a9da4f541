"""Rules of operators with codes of 4 or 8 bits, whose kernels do not compare all of their shapes.

A scale and a zero point are each one number or one for each output; where codes come in blocks, one for
each block. See https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
"""

from __future__ import annotations

from runtime.graph_check.element_rules import check_vector
from runtime.graph_check.shape_rules import INDICES, check_indices
from runtime.graph_check.sizes import Shape
from runtime.graph_check.values import Node, Value

BLOCK_SIZES = (16, 32, 64, 128)
# Bits of a code, dtype of the activations, and how exactly they are multiplied: 4 is in int8.
BLOCK_KINDS = {(4, "float32", 4), (4, "float16", None), (8, "float16", None)}


def _check(node: Node, place: int, dtype: str, shape: Shape) -> None:
    """Makes sure of the dtype and shape of an input."""
    value = node.given(place)
    if value is None or value.dtype != dtype or value.shape != shape:
        wanted = Value(dtype, shape)
        node.refuse(f"input {place} must be {wanted}")


def _check_constant(node: Node, place: int, dtype: str, shape: Shape) -> None:
    _check(node, place, dtype, shape)
    node.require(node.input(place).initializer, f"input {place} is not held by the file")


def _matrix(node: Node, place: int, activations: Value) -> int:
    """Outputs of a constant matrix [inputs, outputs] that activations are multiplied with."""
    matrix = node.input(place)
    fits = matrix.constant and matrix.dtype == "int8" and len(matrix.shape) == 2
    outputs = matrix.shape[-1] if fits else 0
    agree = fits and activations.shape[-1:] == matrix.shape[:1]
    if not agree or activations.dtype != "uint8" or not isinstance(outputs, int):
        node.refuse("the shapes do not agree")
    return outputs


def quantize_linear(node: Node) -> list[Value]:
    """Codes of numbers by one scale."""
    value = node.input(0)
    _check_constant(node, 1, "float32", ())
    _check_constant(node, 2, "uint8", ())
    node.require(value.dtype == "float32", "it is of float32")
    return [Value("uint8", value.shape)]


def dequantize_linear(node: Node) -> list[Value]:
    """Numbers of codes by one scale."""
    value = node.input(0)
    _check_constant(node, 1, "float32", ())
    _check_constant(node, 2, value.dtype, ())
    node.require(value.dtype in ("uint8", "int8"), "it is of codes of 8 bits")
    return [Value("float32", value.shape)]


def dynamic_quantize_linear(node: Node) -> list[Value]:
    """Codes of numbers with a scale and a zero point that are computed of them."""
    value = node.input(0)
    node.require(value.dtype == "float32", "it is of float32")
    return [Value("uint8", value.shape), Value("float32", ()), Value("uint8", ())]


def matmul_integer(node: Node) -> list[Value]:
    """The product of codes, each less its zero point."""
    value = node.input(0)
    outputs = _matrix(node, 1, value)
    _check(node, 2, "uint8", ())
    _check(node, 3, "int8", ())
    node.require(len(value.shape) > 1, "it is no matrix")
    return [Value("int32", (*value.shape[:-1], outputs))]


def matmul_integer_to_float(node: Node) -> list[Value]:
    """The product of codes in floats: a scale of the activations, and one for each output."""
    value = node.input(0)
    node.require(len(value.shape) > 1, "it is no matrix")
    outputs = _matrix(node, 1, value)
    _check_constant(node, 2, "float32", ())
    _check_constant(node, 3, "float32", (outputs,))
    _check_constant(node, 4, "uint8", ())
    made = Value("float32", (*value.shape[:-1], outputs))
    check_vector(node, 6, made)
    return [made]


def qgemm(node: Node) -> list[Value]:
    """The product of matrices of codes in floats: as above, and a zero point for each output."""
    value = node.input(0)
    node.require(len(value.shape) == 2, "it is no matrix")
    outputs = _matrix(node, 3, value)
    _check_constant(node, 1, "float32", ())
    _check_constant(node, 2, "uint8", ())
    _check_constant(node, 4, "float32", (outputs,))
    _check_constant(node, 5, "int8", (outputs,))
    return [Value("float32", (value.shape[0], outputs))]


# === Blocks ===


def matmul_n_bits(node: Node) -> list[Value]:
    """The product with a matrix in blocks of codes, [outputs, blocks, bytes]."""
    value = node.input(0)
    inputs, outputs, bits, size = (
        node.attributes.get(name, 0) for name in ("K", "N", "bits", "block_size")
    )
    kind = (bits, value.dtype, node.attributes.get("accuracy_level"))
    node.require(kind in BLOCK_KINDS and size in BLOCK_SIZES, "no bundle has such blocks")
    node.require(len(value.shape) > 1 and value.shape[-1] == inputs, "the shapes do not agree")
    node.require(inputs % size == 0 and outputs > 0, "blocks do not divide the inputs")
    blocks = inputs // size
    _check_constant(node, 1, "uint8", (outputs, blocks, size * bits // 8))
    _check_constant(node, 2, value.dtype, (outputs, blocks))
    if bits == 4:
        _check_constant(node, 3, "uint8", (outputs, -(-blocks // 2)))
    else:
        node.require(node.given(3) is None, "codes of 8 bits have no zero points")
    made = Value(value.dtype, (*value.shape[:-1], outputs))
    check_vector(node, 5, made)
    return [made]


def gather_block_quantized(node: Node) -> list[Value]:
    """Rows of a table in blocks of codes of 4 bits, [rows, inputs / 2]."""
    table, indices = node.input(0), node.input(1)
    wanted = {"bits": 4, "gather_axis": 0, "quantize_axis": 1}
    size = node.attributes.get("block_size")
    node.require(
        size in BLOCK_SIZES and {**wanted, "block_size": size} == node.attributes,
        "no bundle has such blocks",
    )
    rows, half = table.shape if len(table.shape) == 2 else (0, 0)
    if not isinstance(half, int) or not isinstance(size, int) or 2 * half % size or not half:
        node.refuse("blocks do not divide the rows")
    blocks = 2 * half // size
    _check_constant(node, 0, "uint8", (rows, half))
    _check_constant(node, 2, "float32", (rows, blocks))
    _check_constant(node, 3, "uint8", (rows, -(-blocks // 2)))
    node.require(indices.dtype in INDICES, "the indices are no whole numbers")
    check_indices(node, indices.span, rows)
    return [Value("float32", (*indices.shape, 2 * half))]
