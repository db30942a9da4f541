"""Keeps tokens laid out by rows, [batch, sequence, width], from the embedding to the last norm.

The trace lays all tokens out flat, so that every dense layer is one matrix product; the fused attention
wants rows, and takes two Reshapes a layer for it. ONNX Runtime's quantized products take rows too, so
the Reshapes can go. (Its float product and bias are one operator only when flat.)
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphs.contract import HIDDEN_STATES
from graphs.passes.matching import constant, only_user, producer, remove_unused, shared_constant
from graphs.program import Program


def keep_rows(program: Program) -> int:
    """Takes the Reshapes around every attention out; returns how many attentions had them."""
    graph = program.graph
    attentions = [node for node in graph if node.op_type == "GroupQueryAttention"]
    flattened = [node for node in graph if _numbers_rows(program, node)]
    hidden = next(value for value in graph.outputs if value.name == HIDDEN_STATES)
    reshaped = producer(hidden, "Reshape")
    if len(attentions) != program.config.num_layers or len(flattened) != 2 or reshaped is None:
        return 0
    for node in flattened:  # tokens and positions
        _replace_uses(node.outputs[0], node.inputs[0])
    for node in attentions:
        packed, flat = producer(node.inputs[0], "Reshape"), only_user(node.outputs[0], "Reshape")
        assert packed is not None
        assert flat is not None
        _replace_uses(packed.outputs[0], packed.inputs[0])
        _replace_uses(flat.outputs[0], node.outputs[0])
    _flatten_last(program, reshaped)
    remove_unused(graph)
    return len(attentions)


def _numbers_rows(program: Program, node: ir.Node) -> bool:
    """Whether a node lays out flat the numbers by which rows of a table are looked up."""
    if node.op_type != "Reshape" or _shape(node) != [-1]:
        return False
    users = [use.node for use in node.outputs[0].uses()]
    clipped = only_user(node.outputs[0], "Min")
    if clipped is not None:
        users = [use.node for use in clipped.outputs[0].uses()]
    return bool(users) and all(
        user.op_type == "Gather" and program.name_of(user.inputs[0]) is not None for user in users
    )


def _shape(node: ir.Node) -> list[int] | None:
    shape = constant(node.inputs[1])
    return None if shape is None else shape.numpy().tolist()


def _flatten_last(program: Program, reshaped: ir.Node) -> None:
    """Lays the last hidden states out flat for all that reads them but their own output."""
    last = reshaped.inputs[0]
    assert last is not None
    others = [use for use in last.uses() if use.node is not reshaped]
    width = np.array([-1, program.config.embedding_width])
    flat = ir.node("Reshape", [last, shared_constant(program.graph, "flat_tokens", width)])
    for use in others:
        use.node.replace_input_with(use.idx, flat.outputs[0])
    producing = last.producer()
    assert producing is not None
    program.graph.insert_after(producing, [flat])


def _replace_uses(value: ir.Value, other: ir.Value | None) -> None:
    for use in list(value.uses()):
        use.node.replace_input_with(use.idx, other)
