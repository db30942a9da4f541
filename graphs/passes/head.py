"""Lets the language-model head read its table as it is stored.

The trace transposes the table [vocabulary, embedding] before the product with the hidden states; a
runtime would fold that into a second copy of the largest weight. Gemm multiplies by the transpose.
"""

from __future__ import annotations

import onnx_ir as ir

from graphs.passes.matching import producer, remove_unused
from graphs.program import Program


def fuse_head(program: Program) -> int:
    """Rewrites `MatMul(x, Transpose(weight))` on matrices to Gemm; returns how many."""
    graph = program.graph
    weights = set(program.weights.values())
    count = 0
    for node in list(graph):
        if node.op_type != "MatMul":
            continue
        transpose = producer(node.inputs[1], "Transpose")
        if transpose is None or transpose.inputs[0] not in weights:
            continue
        # The traced hidden states have no shape of their own; the logits they make have.
        product_is_matrix = _is_matrix(node.inputs[0]) or _is_matrix(node.outputs[0])
        if not product_is_matrix or not _is_matrix(transpose.inputs[0]):
            continue
        permutation = transpose.attributes.get("perm")
        if permutation is not None and list(permutation.as_ints()) != [1, 0]:
            continue
        gemm = ir.node("Gemm", [node.inputs[0], transpose.inputs[0]], {"transB": 1})
        ir.convenience.replace_nodes_and_values(graph, node, [node], [gemm], node.outputs, gemm.outputs)
        count += 1
    remove_unused(graph)
    return count


def _is_matrix(value: ir.Value | None) -> bool:
    return value is not None and value.shape is not None and len(value.shape) == 2
