"""Puts ONNX Runtime's MatMulNBits where products with a layer's matrix were.

The operator unpacks blocks of codes as it multiplies; each block has a scale, and with 4 bits a zero
point (https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits).
Beside floats of 16 bits these are the passes for it; `graphs.passes.int4` has those for CPUs.
"""

from __future__ import annotations

import onnx_ir as ir

from graphs.passes.dense import layer_products, replace_span
from graphs.passes.matching import FUSED_DOMAIN, remove_unused
from graphs.program import Program
from graphs.quantization import BlockMatrix, block_size


def block_product(
    program: Program, x: ir.Value, matrix: BlockMatrix, bias: ir.Value | None, **attributes: int
) -> ir.Node:
    """The product of activations with a matrix in blocks, and a bias."""
    outputs, blocks, _ = matrix.codes.shape
    zero_points = None if matrix.zero_points is None else program.stored(matrix.zero_points)
    operands = [x, program.stored(matrix.codes), program.stored(matrix.scales), zero_points]
    while operands[-1] is None:
        operands.pop()
    if bias is not None:
        operands = [*operands, *[None] * (5 - len(operands)), bias]
    sizes = {"K": blocks * matrix.block_size, "N": outputs, "bits": matrix.bits}
    return ir.node(
        "MatMulNBits",
        operands,
        {**sizes, "block_size": matrix.block_size, **attributes},
        domain=FUSED_DOMAIN,
    )


def block_layers_int4(program: Program) -> int:
    """Rewrites every product with a decoder layer's matrix to codes of 4 bits; returns how many."""
    return _rewrite(program, 4)


def block_layers_int8(program: Program) -> int:
    """Rewrites every product with a decoder layer's matrix to codes of 8 bits; returns how many."""
    return _rewrite(program, 8)


def _rewrite(program: Program, bits: int) -> int:
    size = block_size(program.config)
    count = 0
    for dense in layer_products(program):
        inputs, outputs = program.shape_of(dense.weight)
        matrix = BlockMatrix.of(dense.weight, outputs, inputs, size, bits, "fp16")
        product = block_product(program, dense.inputs, matrix, dense.bias)
        replace_span(program, dense.output, [product], product.outputs[0])
        count += 1
    if count:
        program.model.opset_imports[FUSED_DOMAIN] = 1
    remove_unused(program.graph)
    return count
