"""Puts ONNX Runtime's SkipLayerNormalization where a branch joins the residual and is normalized.

The trace adds the branch's bias, then the residual, then normalizes. The operator does that in one pass
and gives the sum too, which is the next residual
(https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.SkipLayerNormalization).
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from graphs.passes.matching import FUSED_DOMAIN, only_user, pairs, producer, remove_unused
from graphs.program import Program


@dataclass(frozen=True)
class _Match:
    """A branch's matrix product with its bias, and the residual that it is added to."""

    product: ir.Value
    bias: ir.Value | None
    residual: ir.Value


def fuse_skip_layer_norm(program: Program) -> int:
    """Rewrites every layer normalization of such a sum; returns how many."""
    graph = program.graph
    weights = set(program.weights.values())
    count = 0
    for node in list(graph):
        match = _match(node, weights)
        if match is None:
            continue
        total, gamma, *beta = node.inputs
        assert total is not None
        fused = ir.node(
            "SkipLayerNormalization",
            [match.product, match.residual, gamma, *(beta or [None]), match.bias],
            {"epsilon": node.attributes["epsilon"].as_float()},
            domain=FUSED_DOMAIN,
            num_outputs=4,
        )
        ir.convenience.replace_nodes_and_values(
            graph, node, [node], [fused], [node.outputs[0], total], [fused.outputs[0], fused.outputs[3]]
        )
        count += 1
    if count:
        program.model.opset_imports[FUSED_DOMAIN] = 1
    remove_unused(graph)
    return count


def _match(node: ir.Node, weights: set[ir.Value]) -> _Match | None:
    if node.op_type != "LayerNormalization" or node.attributes.get_int("axis", -1) != -1:
        return None
    total = producer(node.inputs[0], "Add")
    for branch, residual in pairs(total) if total is not None else ():
        if branch is None or residual is None or only_user(branch, "Add") is not total:
            continue
        if residual.producer() is None:  # a weight or a constant: the bias of a sum without residual
            continue
        if producer(branch, "MatMul") is not None:
            return _Match(branch, None, residual)
        biased = producer(branch, "Add")
        for product, bias in pairs(biased) if biased is not None else ():
            if product is not None and bias in weights and producer(product, "MatMul") is not None:
                return _Match(product, bias, residual)
    return None
