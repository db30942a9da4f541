"""Puts 4-bit products where float ones were: weights in blocks, each with a scale and a zero point.

MatMulNBits unpacks blocks as it multiplies; with accuracy level 4 it quantizes activations to int8,
each row's blocks by themselves. One table serves the head and, through GatherBlockQuantized, the
embedding
(https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits).
"""

from __future__ import annotations

import onnx_ir as ir

from graphs.passes.blocks import block_product
from graphs.passes.dense import head_product, layer_products, replace_span, token_lookup
from graphs.passes.matching import FUSED_DOMAIN, remove_unused
from graphs.program import Program
from graphs.quantization import BlockMatrix, block_size

ACCURACY_LEVEL = 4  # products of int8, the fast ones


def quantize_layers_int4(program: Program) -> int:
    """Rewrites every product with a decoder layer's matrix; returns how many."""
    count = 0
    for dense in layer_products(program):
        inputs, outputs = program.shape_of(dense.weight)
        product = _product(program, dense.inputs, dense.weight, outputs, inputs, dense.bias)
        replace_span(program, dense.output, [product], product.outputs[0])
        count += 1
    _finish(program, count)
    return count


def quantize_tables_int4(program: Program) -> int:
    """Rewrites the token embedding and the head; returns how many."""
    config = program.config
    outputs, inputs = config.vocabulary_size, config.embedding_width
    lookup, head = token_lookup(program), head_product(program)
    if lookup is not None:
        table = BlockMatrix.of(lookup.weight, outputs, inputs, block_size(config))
        zero_points = table.zero_points
        assert zero_points is not None
        rows = ir.node(
            "GatherBlockQuantized",
            [
                program.stored(table.rows()),
                lookup.rows,
                program.stored(table.scales),
                program.stored(zero_points),
            ],
            {"bits": 4, "block_size": table.block_size, "gather_axis": 0, "quantize_axis": 1},
            domain=FUSED_DOMAIN,
        )
        replace_span(program, lookup.node.outputs[0], [rows], rows.outputs[0])
    if head is not None:
        product = _product(program, head.inputs, head.weight, outputs, inputs, None)
        replace_span(program, head.node.outputs[0], [product], product.outputs[0])
    count = (lookup is not None) + (head is not None)
    _finish(program, count)
    return count


def _product(
    program: Program, x: ir.Value, weight: str, outputs: int, inputs: int, bias: ir.Value | None
) -> ir.Node:
    matrix = BlockMatrix.of(weight, outputs, inputs, block_size(program.config))
    return block_product(program, x, matrix, bias, accuracy_level=ACCURACY_LEVEL)


def _finish(program: Program, count: int) -> None:
    if count:
        program.model.opset_imports[FUSED_DOMAIN] = 1
    remove_unused(program.graph)
