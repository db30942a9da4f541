"""Puts ONNX Runtime's SkipLayerNormalization where a sum, often with a bias, is followed by a norm.

One pass over the residual stream instead of three: a GPU starts one kernel and reads the numbers once.
(Its CPU kernel takes five times as long as the operators it replaces.) The sum is an output too
(https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.SkipLayerNormalization).
"""

from __future__ import annotations

import onnx_ir as ir

from graphs.passes.matching import FUSED_DOMAIN, pairs, producer, remove_unused
from graphs.program import Program

_SUM_OUTPUT, _OUTPUTS = 3, 4
_BIAS_INPUT = 4


def fuse_skip_norm(program: Program) -> int:
    """Rewrites every norm of a sum; returns how many."""
    count = 0
    for norm in list(program.graph):
        total = _sum_before(program, norm)
        if total is None:
            continue
        _replace(program, total, norm)
        count += 1
    if count:
        program.model.opset_imports[FUSED_DOMAIN] = 1
    remove_unused(program.graph)
    return count


def _sum_before(program: Program, norm: ir.Node) -> ir.Node | None:
    """The sum of two activations that a norm of the last axis is of."""
    if norm.op_type != "LayerNormalization" or norm.attributes.get_int("axis", -1) != -1:
        return None
    total = producer(norm.inputs[0], "Add")
    if total is None or any(program.name_of(value) is not None for value in total.inputs):
        return None
    return total


def _replace(program: Program, total: ir.Node, norm: ir.Node) -> None:
    added, skip, bias = _parts(program, total)
    operands = [added, skip, *norm.inputs[1:]]
    if bias is not None:
        # A norm without offset has an empty place for it.
        operands = [*operands, *[None] * (_BIAS_INPUT - len(operands)), bias]
    summed = total.outputs[0]
    others = [use for use in summed.uses() if use.node is not norm]
    fused = ir.node(
        "SkipLayerNormalization",
        operands,
        {"epsilon": norm.attributes.get_float("epsilon", 1e-5)},
        domain=FUSED_DOMAIN,
        num_outputs=_OUTPUTS if others else 1,
    )
    for unused in fused.outputs[1:_SUM_OUTPUT]:  # mean and deviation
        unused.name = ""
    for use in others:
        use.node.replace_input_with(use.idx, fused.outputs[_SUM_OUTPUT])
    ir.convenience.replace_nodes_and_values(
        program.graph, norm, [norm], [fused], [norm.outputs[0]], [fused.outputs[0]]
    )


def _parts(
    program: Program, total: ir.Node
) -> tuple[ir.Value | None, ir.Value | None, ir.Value | None]:
    """What is added, what it is added to, and the bias that is added to the first."""
    for value, other in pairs(total):
        biased = producer(value, "Add")
        if biased is None or value is None or len(value.uses()) != 1:
            continue
        for product, bias in pairs(biased):
            if program.name_of(bias) is not None:
                return product, other, bias
    first, second = total.inputs
    return first, second, None
