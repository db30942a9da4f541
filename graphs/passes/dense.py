"""What the quantizing passes look for: products with a layer's matrix, and with the tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from graphs.passes.matching import only_user, pairs
from graphs.program import Program
from graphs.quantization import is_layer_matrix, is_token_table


@dataclass(frozen=True)
class Dense:
    """The product of activations with a layer's matrix.

    Attributes:
        node: the MatMul.
        inputs: the activations.
        weight: the matrix's name.
        bias: added to the product, `None` where there is none or another node adds it.
        output: the product, its bias added.
    """

    node: ir.Node
    inputs: ir.Value
    weight: str
    bias: ir.Value | None
    output: ir.Value


def layer_products(program: Program) -> Iterator[Dense]:
    """Every product with a matrix of a decoder layer; the graph may be changed meanwhile."""
    for node in list(program.graph):
        if node.op_type != "MatMul" or node.domain != "":
            continue
        inputs, matrix = node.inputs
        weight = program.name_of(matrix)
        if inputs is None or weight is None or not is_layer_matrix(weight):
            continue
        bias, output = _added_bias(program, node.outputs[0])
        yield Dense(node, inputs, weight, bias, output)


def _added_bias(program: Program, product: ir.Value) -> tuple[ir.Value | None, ir.Value]:
    add = only_user(product, "Add")
    for value, other in pairs(add) if add is not None else ():
        if value is product and program.name_of(other) is not None:
            assert add is not None
            return other, add.outputs[0]
    return None, product


@dataclass(frozen=True)
class Lookup:
    """Rows of the token table: the node, the table's name and the rows' numbers."""

    node: ir.Node
    weight: str
    rows: ir.Value


def token_lookup(program: Program) -> Lookup | None:
    """Where token ids become embeddings."""
    for node in program.graph:
        if node.op_type == "Gather" and node.domain == "" and node.attributes.get_int("axis", 0) == 0:
            table, rows = node.inputs
            weight = program.name_of(table)
            if rows is not None and weight is not None and is_token_table(weight):
                return Lookup(node, weight, rows)
    return None


@dataclass(frozen=True)
class Head:
    """The product of the last hidden states with the head's table, as `fuse_head` writes it."""

    node: ir.Node
    inputs: ir.Value
    weight: str


def head_product(program: Program) -> Head | None:
    """Where hidden states become logits."""
    for node in program.graph:
        if node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1:
            inputs, table = node.inputs[:2]
            weight = program.name_of(table)
            if inputs is not None and weight is not None:
                return Head(node, inputs, weight)
    return None


def replace_span(program: Program, last: ir.Value, nodes: list[ir.Node], output: ir.Value) -> None:
    """Puts nodes where a value was made, their output in its place; what made it is left for later."""
    node = last.producer()
    assert node is not None
    ir.convenience.replace_nodes_and_values(program.graph, node, [node], nodes, [last], [output])
