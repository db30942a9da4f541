"""Rules of products of floats: ONNX's, and ONNX Runtime's own with a transpose in it."""

from __future__ import annotations

from runtime.graph_check.element_rules import FLOATS, check_vector
from runtime.graph_check.shape_rules import broadcast
from runtime.graph_check.values import Node, Value


def _check_floats(node: Node, a: Value, b: Value) -> None:
    if a.dtype not in FLOATS or a.dtype != b.dtype:
        node.refuse("they are not of one kind of floats")


def matmul(node: Node) -> list[Value]:
    """Products of the matrices of the last two axes."""
    a, b = node.input(0), node.input(1)
    _check_floats(node, a, b)
    ranks = len(a.shape), len(b.shape)
    if min(ranks) < 2 or a.shape[-1] != b.shape[-2]:
        node.refuse("the shapes do not agree")
    batches = broadcast(node, a.shape[:-2], b.shape[:-2])
    return [Value(a.dtype, (*batches, a.shape[-2], b.shape[-1]))]


def fused_matmul(node: Node) -> list[Value]:
    """The product with the transpose of a matrix."""
    a, b = node.input(0), node.input(1)
    _check_floats(node, a, b)
    fits = len(a.shape) > 1 and len(b.shape) == 2 and a.shape[-1] == b.shape[1]
    node.require(fits and node.attributes.get("transB") == 1, "the shapes do not agree")
    return [Value(a.dtype, (*a.shape[:-1], b.shape[0]))]


def gemm(node: Node) -> list[Value]:
    """The product of two matrices, and a bias for each column."""
    a, b = node.input(0), node.input(1)
    _check_floats(node, a, b)
    transposed = node.attributes.get("transB", 0)
    node.require(len(a.shape) == len(b.shape) == 2 and transposed in (0, 1), "they are no matrices")
    inner, outer = (b.shape[1], b.shape[0]) if transposed else (b.shape[0], b.shape[1])
    node.require(a.shape[1] == inner, "the shapes do not agree")
    made = Value(a.dtype, (a.shape[0], outer))
    check_vector(node, 2, made)
    return [made]
