"""Helpers that passes share to walk a graph."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir


def producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node of the given type that makes a value, or `None`."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type and node.domain == "" else None


def pairs(node: ir.Node) -> Iterable[tuple[ir.Value | None, ir.Value | None]]:
    """The two inputs of a commutative node in both orders."""
    first, second = node.inputs
    return (first, second), (second, first)


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The values of an initializer or Constant node, or `None`."""
    return ir.convenience.get_const_tensor(value) if value is not None else None


def remove_unused(graph: ir.Graph) -> None:
    """Takes out nodes whose outputs nothing uses, and constants that no node uses."""
    outputs = set(graph.outputs)
    for node in reversed(list(graph)):
        if not any(output.uses() or output in outputs for output in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses():
            del graph.initializers[name]
