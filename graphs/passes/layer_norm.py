"""Puts ONNX's LayerNormalization where Keras's layer normalization was traced.

Keras computes `x * s + (beta - mean * s)` with `s = gamma / sqrt(variance + epsilon)` and the
statistics of the last axis; tf2onnx writes that as about ten nodes. Without scale and offset it is
`x * s - mean * s` with `s = 1 / sqrt(variance + epsilon)`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphs.passes.matching import constant, pairs, producer, remove_unused, shared_constant
from graphs.program import Program

ONES = "layer_norm_ones"


@dataclass(frozen=True)
class _Match:
    x: ir.Value
    gamma: ir.Value | None
    beta: ir.Value | None
    epsilon: float


def fuse_layer_norm(program: Program) -> int:
    """Rewrites every layer normalization; returns how many."""
    graph = program.graph
    weights = set(program.weights.values())
    ones = np.ones(program.config.hidden_dim, np.float32)
    count = 0
    for node in list(graph):
        match = _match(node, weights) or _match_plain(node)
        if match is None:
            continue
        # The operator's scale is not optional.
        gamma = match.gamma if match.gamma is not None else shared_constant(graph, ONES, ones)
        fused = ir.node(
            "LayerNormalization",
            [match.x, gamma] if match.beta is None else [match.x, gamma, match.beta],
            {"axis": -1, "epsilon": match.epsilon},
        )
        ir.convenience.replace_nodes_and_values(
            graph, node, [node], [fused], node.outputs, fused.outputs
        )
        count += 1
    remove_unused(graph)
    return count


def _match(node: ir.Node, weights: set[ir.Value]) -> _Match | None:
    """Matches from the last node, `Add(Mul(x, s), Add(Mul(Neg(mean), s), beta))`."""
    if node.op_type != "Add":
        return None
    for scaled, shift in pairs(node):
        scaled_node, shift_node = producer(scaled, "Mul"), producer(shift, "Add")
        if scaled_node is None or shift_node is None:
            continue
        for x, scale in pairs(scaled_node):
            for centre, beta in pairs(shift_node):
                found = _match_parts(x, scale, centre, _weight(beta, weights), weights)
                if found is not None:
                    return found
    return None


def _match_plain(node: ir.Node) -> _Match | None:
    """Matches a norm without scale and offset, `Add(Mul(x, s), Mul(Neg(mean), s))`."""
    if node.op_type != "Add":
        return None
    for scaled, shift in pairs(node):
        scaled_node, shift_node = producer(scaled, "Mul"), producer(shift, "Mul")
        if scaled_node is None or shift_node is None:
            continue
        for x, scale in pairs(scaled_node):
            if x is None or (epsilon := _inverse_deviation_epsilon(scale, x)) is None:
                continue
            if any(f is scale and _is_negative_mean(other, x) for f, other in pairs(shift_node)):
                return _Match(x, None, None, epsilon)
    return None


def _match_parts(
    x: ir.Value | None,
    scale: ir.Value | None,
    centre: ir.Value | None,
    beta: ir.Value | None,
    weights: set[ir.Value],
) -> _Match | None:
    centre_node, scale_node = producer(centre, "Mul"), producer(scale, "Mul")
    if x is None or beta is None or centre_node is None or scale_node is None:
        return None
    if not any(factor is scale and _is_negative_mean(other, x) for factor, other in pairs(centre_node)):
        return None
    for inverse, gamma_value in pairs(scale_node):
        gamma = _weight(gamma_value, weights)
        epsilon = _inverse_deviation_epsilon(inverse, x)
        if gamma is not None and epsilon is not None:
            return _Match(x, gamma, beta, epsilon)
    return None


def _weight(value: ir.Value | None, weights: set[ir.Value]) -> ir.Value | None:
    """The weight vector that a value is, or is a reshaped view of."""
    reshape = producer(value, "Reshape")
    value = reshape.inputs[0] if reshape is not None else value
    return value if value in weights else None


def _is_last_axis_mean(node: ir.Node) -> bool:
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    keep = node.attributes.get("keepdims")
    if keep is not None and keep.as_int() != 1:
        return False
    return axes is not None and axes.numpy().tolist() == [-1]


def _is_negative_mean(value: ir.Value | None, x: ir.Value) -> bool:
    negative = producer(value, "Neg")
    mean = producer(negative.inputs[0], "ReduceMean") if negative is not None else None
    return mean is not None and mean.inputs[0] is x and _is_last_axis_mean(mean)


def _inverse_deviation_epsilon(value: ir.Value | None, x: ir.Value) -> float | None:
    """The epsilon of `Reciprocal(Sqrt(variance(x) + epsilon))`, or `None` if it is not that."""
    reciprocal = producer(value, "Reciprocal")
    root = producer(reciprocal.inputs[0], "Sqrt") if reciprocal is not None else None
    total = producer(root.inputs[0], "Add") if root is not None else None
    if total is None:
        return None
    for variance, epsilon in pairs(total):
        tensor, mean = constant(epsilon), producer(variance, "ReduceMean")
        if tensor is None or mean is None or not _is_last_axis_mean(mean):
            continue
        square = producer(mean.inputs[0], "Mul")
        centred = producer(square.inputs[0], "Sub") if square is not None else None
        if (
            square is not None
            and centred is not None
            and square.inputs[0] is square.inputs[1]
            and centred.inputs[0] is x
            and (centre := producer(centred.inputs[1], "ReduceMean")) is not None
            and centre.inputs[0] is x
            and _is_last_axis_mean(centre)
        ):
            return float(tensor.numpy().reshape(()))
    return None
