"""Adds a dense layer's bias in the operator that multiplies.

The trace multiplies, then adds. Gemm does both in one pass over the product.
"""

from __future__ import annotations

import onnx_ir as ir

from graphs.passes.dense import layer_products, replace_span
from graphs.passes.matching import remove_unused
from graphs.program import Program


def fuse_bias(program: Program) -> int:
    """Rewrites every product with a decoder layer's matrix and bias to Gemm; returns how many.

    Gemm takes matrices: the tokens must be laid out flat, as they are traced.
    """
    count = 0
    for dense in layer_products(program):
        if dense.bias is None:
            continue
        gemm = ir.node("Gemm", [dense.inputs, dense.node.inputs[1], dense.bias])
        replace_span(program, dense.output, [gemm], gemm.outputs[0])
        count += 1
    remove_unused(program.graph)
    return count
