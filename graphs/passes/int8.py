"""Puts 8-bit products where float ones were: uint8 activations times int8 weights.

Activations are quantized with a fixed scale, so that a row's result does not depend on the rows beside
it; the product of integers is scaled back and takes the bias in one operator
(https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulIntegerToFloat).
After a ReLU the zero point is 0, so that quantizing also clips at zero and the ReLU goes away.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphs.passes.dense import Dense, head_product, layer_products, replace_span, token_lookup
from graphs.passes.matching import FUSED_DOMAIN, producer, remove_unused, shared_constant
from graphs.program import Program
from graphs.quantization import Int8Lookup, Int8Matrix, head_factors


def quantize_layers_int8(program: Program) -> int:
    """Rewrites every product with a decoder layer's matrix; returns how many."""
    count = 0
    for dense in layer_products(program):
        _replace_dense(program, dense)
        count += 1
    _finish(program, count)
    return count


def _replace_dense(program: Program, dense: Dense) -> None:
    matrix = Int8Matrix.of(dense.weight, program.shape_of(dense.weight))
    relu = producer(dense.inputs, "Relu")
    inputs = relu.inputs[0] if relu is not None else dense.inputs
    quantize = _quantized(program, inputs, matrix)
    product = ir.node(
        "MatMulIntegerToFloat",
        [
            quantize.outputs[0],
            program.stored(matrix.codes),
            program.stored(matrix.input_scale),
            program.stored(matrix.scales),
            program.stored(matrix.input_zero_point),
            None,
            dense.bias,
        ],
        domain=FUSED_DOMAIN,
    )
    replace_span(program, dense.output, [quantize, product], product.outputs[0])


def quantize_tables_int8(program: Program) -> int:
    """Rewrites the token embedding and the head; returns how many."""
    lookup, head = token_lookup(program), head_product(program)
    if lookup is not None:
        _replace_lookup(program, lookup.weight, lookup.rows, lookup.node.outputs[0])
    if head is not None:
        _replace_head(program, head.weight, head.inputs, head.node.outputs[0])
    count = (lookup is not None) + (head is not None)
    _finish(program, count)
    return count


def _replace_lookup(program: Program, weight: str, rows: ir.Value, output: ir.Value) -> None:
    table = Int8Lookup.of(weight, program.config)
    codes = ir.node("Gather", [program.stored(table.codes), rows], {"axis": 0})
    scales = ir.node("Gather", [program.stored(table.scales), rows], {"axis": 0})
    numbers = ir.node("Cast", [codes.outputs[0]], {"to": ir.DataType.FLOAT})
    nodes = [codes, scales, numbers, ir.node("Mul", [numbers.outputs[0], scales.outputs[0]])]
    if table.factors is not None:
        nodes.append(ir.node("Mul", [nodes[-1].outputs[0], program.stored(table.factors)]))
    replace_span(program, output, nodes, nodes[-1].outputs[0])


def _replace_head(program: Program, weight: str, inputs: ir.Value, output: ir.Value) -> None:
    config = program.config
    table = Int8Matrix.of(weight, (config.vocabulary_size, config.embedding_width), outputs_axis=0)
    smooth = ir.node("Mul", [inputs, program.stored(head_factors(weight, config.embedding_width))])
    quantize = _quantized(program, smooth.outputs[0], table)
    # ONNX Runtime transposes once, when it makes the pack. With transB each start would, as each packs
    # once more to find what was saved: three times as long.
    by_inputs = ir.node("Transpose", [program.stored(table.codes)], {"perm": [1, 0]})
    # The operator wants as many zero points as there are scales.
    zeros = np.zeros(config.vocabulary_size, np.int8)
    zero_points = shared_constant(program.graph, "head_zero_points", zeros)
    product = ir.node(
        "QGemm",
        [
            quantize.outputs[0],
            program.stored(table.input_scale),
            program.stored(table.input_zero_point),
            by_inputs.outputs[0],
            program.stored(table.scales),
            zero_points,
        ],
        domain=FUSED_DOMAIN,
    )
    replace_span(program, output, [smooth, quantize, by_inputs, product], product.outputs[0])


def _quantized(program: Program, inputs: ir.Value | None, matrix: Int8Matrix) -> ir.Node:
    """What makes uint8 codes of a matrix's inputs."""
    scale, zero_point = program.stored(matrix.input_scale), program.stored(matrix.input_zero_point)
    return ir.node("QuantizeLinear", [inputs, scale, zero_point])


def _finish(program: Program, count: int) -> None:
    if count:
        program.model.opset_imports[FUSED_DOMAIN] = 1
    remove_unused(program.graph)
