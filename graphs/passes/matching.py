"""Helpers that passes share to walk a graph."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

FUSED_DOMAIN = "com.microsoft"  # ONNX Runtime's own operators


def producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node of the given type that makes a value, or `None`."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type and node.domain == "" else None


def transposition(value: ir.Value | None, axes: tuple[int, ...]) -> ir.Node | None:
    """The Transpose to the given order of axes that makes a value, or `None`."""
    node = producer(value, "Transpose")
    order = node.attributes.get("perm") if node is not None else None
    return node if order is not None and tuple(order.as_ints()) == axes else None


def pairs(node: ir.Node) -> Iterable[tuple[ir.Value | None, ir.Value | None]]:
    """The two inputs of a commutative node in both orders."""
    first, second = node.inputs
    return (first, second), (second, first)


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The values of an initializer or Constant node, or `None`."""
    return ir.convenience.get_const_tensor(value) if value is not None else None


def only_user(value: ir.Value, op_type: str) -> ir.Node | None:
    """The one node that uses a value, if it is of the given type; else `None`.

    A value that the graph gives out is used by whoever runs it, too.
    """
    if value.is_graph_output():
        return None
    users = [use.node for use in value.uses()]
    return users[0] if len(users) == 1 and users[0].op_type == op_type else None


def shared_constant(graph: ir.Graph, name: str, values: np.ndarray) -> ir.Value:
    """An initializer with the given values, made at the first call with its name."""
    if name not in graph.initializers:
        graph.initializers[name] = ir.Value(
            name=name,
            shape=ir.Shape(values.shape),
            type=ir.TensorType(ir.DataType.from_numpy(values.dtype)),
            const_value=ir.tensor(values, name=name),
        )
    return graph.initializers[name]


def remove_unused(graph: ir.Graph) -> None:
    """Takes out nodes whose outputs nothing uses, and constants that no node uses."""
    outputs = set(graph.outputs)
    for node in reversed(list(graph)):
        if not any(output.uses() or output in outputs for output in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses():
            del graph.initializers[name]
