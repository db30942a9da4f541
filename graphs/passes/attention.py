"""Puts ONNX Runtime's GroupQueryAttention where attention over the cache was traced.

The trace splits the fused projection, scatters keys and values into the cache, and attends over the
slots in use under a mask. The operator does all of that in place, each row at its own length
(https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.GroupQueryAttention).
With several new tokens after a past it takes one row at a time, without padding. Heads whose width it
does not take stay as they were traced.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphs.contract import INPUT_IDS, NEW_LENGTHS, PAST_LENGTHS
from graphs.passes.matching import (
    FUSED_DOMAIN,
    constant,
    only_user,
    pairs,
    producer,
    remove_unused,
    shared_constant,
    transposition,
)
from graphs.program import Program

HEAD_DIM_MULTIPLE = 8  # the operator takes heads of a multiple of this width
_BY_HEADS = (0, 2, 1, 3)  # from [batch, sequence, heads, head_dim], and back


@dataclass(frozen=True)
class _Cache:
    """A key or value cache before and after the new entries, which are laid out by heads."""

    past: ir.Value
    new: ir.Value
    present: ir.Value


@dataclass(frozen=True)
class _Match:
    """The attention of one layer.

    Attributes:
        qkv: the fused projection [batch * sequence, 3 * hidden].
        scale: of the scores.
        key, value: the caches.
        output: the heads side by side again, [batch * sequence, hidden].
    """

    qkv: ir.Value
    scale: float
    key: _Cache
    value: _Cache
    output: ir.Value


def fuse_attention(program: Program) -> int:
    """Rewrites the attention of every layer; returns how many."""
    graph = program.graph
    matches = [match for node in graph if (match := _match(node)) is not None]
    if not matches or program.config.head_dim % HEAD_DIM_MULTIPLE:
        return 0
    lengths = _add_lengths(program)
    for match in matches:
        _replace(program, match, lengths)
    program.model.opset_imports[FUSED_DOMAIN] = 1
    remove_unused(graph)
    return len(matches)


# === What to look for ===


def _match(node: ir.Node) -> _Match | None:
    """Matches around a softmax: the scores and the caches above it, the flat output below."""
    if node.op_type != "Softmax" or node.attributes.get_int("axis", -1) not in (-1, 3):
        return None
    weighted = only_user(node.outputs[0], "MatMul")
    masked = producer(node.inputs[0], "Add")
    if weighted is None or masked is None:
        return None
    products = [found for value, _ in pairs(masked) if (found := producer(value, "MatMul"))]
    keys = transposition(products[0].inputs[1], (0, 1, 3, 2)) if len(products) == 1 else None
    if keys is None:
        return None
    key, value = _cache(keys.inputs[0]), _cache(weighted.inputs[1])
    query = _scaled_query(products[0].inputs[0])
    output = _flat_output(weighted.outputs[0])
    if key is None or value is None or query is None or output is None:
        return None
    split = producer(query[0], "Split")
    parts = [query[0], _split_part(key.new), _split_part(value.new)]
    if split is None or split.inputs[0] is None or parts != list(split.outputs):
        return None
    return _Match(split.inputs[0], query[1], key, value, output)


def _cache(value: ir.Value | None) -> _Cache | None:
    """The cache whose slots in use a value is."""
    used = producer(value, "Slice")
    present = used.inputs[0] if used is not None else None
    scatter = producer(present, "ScatterND")
    if scatter is None or present is None or "reduction" in scatter.attributes:
        return None
    past, _, new = scatter.inputs
    return None if past is None or new is None else _Cache(past, new, present)


def _split_part(value: ir.Value | None) -> ir.Value | None:
    """What was laid out by heads: reshaped, and transposed where there are several tokens."""
    transpose = transposition(value, _BY_HEADS)
    reshape = producer(transpose.inputs[0] if transpose is not None else value, "Reshape")
    return reshape.inputs[0] if reshape is not None else None


def _scaled_query(value: ir.Value | None) -> tuple[ir.Value, float] | None:
    """The query's part of the split, and the number that it was multiplied by."""
    layout = transposition(value, _BY_HEADS) or producer(value, "Reshape")
    scaled = producer(layout.inputs[0], "Mul") if layout is not None else None
    for query, factor in pairs(scaled) if scaled is not None else ():
        number, part = constant(factor), _split_part(query)
        if number is not None and number.size == 1 and part is not None:
            return part, float(number.numpy().reshape(()))
    return None


def _flat_output(value: ir.Value) -> ir.Value | None:
    user = only_user(value, "Transpose")
    transpose = transposition(user.outputs[0], _BY_HEADS) if user is not None else None
    reshape = only_user(transpose.outputs[0] if transpose is not None else value, "Reshape")
    return reshape.outputs[0] if reshape is not None else None


# === What to put there ===


@dataclass(frozen=True)
class _Lengths:
    """What the operators of all layers are given.

    Attributes:
        last_positions: int32 [batch], position of each row's last new token.
        total_length: int32 [1], slots in use after this pass, the longest row's.
        packed_shape: int64 [3], batch, sequence and three times hidden.
    """

    last_positions: ir.Value
    total_length: ir.Value
    packed_shape: ir.Value


def _add_lengths(program: Program) -> _Lengths:
    graph = program.graph
    inputs = {value.name: value for value in graph.inputs}
    past, new, ids = inputs[PAST_LENGTHS], inputs[NEW_LENGTHS], inputs[INPUT_IDS]
    one = shared_constant(graph, "attention_one", np.array([1], np.int32))
    width = shared_constant(graph, "attention_width", np.array([3 * program.config.hidden_dim]))
    # A row without new tokens writes one entry all the same: past its end, where nothing reads it.
    written = ir.node("Max", [new, one])
    after = ir.node("Add", [past, written.outputs[0]])
    last = ir.node("Sub", [after.outputs[0], one])
    longest = ir.node("ReduceMax", [past], {"keepdims": 1})
    sequence = ir.node("Shape", [ids], {"start": 1})
    narrow = ir.node("Cast", [sequence.outputs[0]], {"to": ir.DataType.INT32})
    total = ir.node("Add", [longest.outputs[0], narrow.outputs[0]])
    shape = ir.node("Shape", [ids])
    packed = ir.node("Concat", [shape.outputs[0], width], {"axis": 0})
    nodes = [written, after, last, longest, sequence, narrow, total, shape, packed]
    graph.insert_before(graph[0], nodes)
    return _Lengths(last.outputs[0], total.outputs[0], packed.outputs[0])


def _replace(program: Program, match: _Match, lengths: _Lengths) -> None:
    graph, config = program.graph, program.config
    flat_shape = shared_constant(graph, "attention_flat", np.array([-1, config.hidden_dim]))
    packed = ir.node("Reshape", [match.qkv, lengths.packed_shape])
    attention = ir.node(
        "GroupQueryAttention",
        [
            packed.outputs[0],
            None,
            None,
            match.key.past,
            match.value.past,
            lengths.last_positions,
            lengths.total_length,
        ],
        {
            "num_heads": config.num_heads,
            "kv_num_heads": config.num_heads,
            "scale": match.scale,
            "do_rotary": 0,
        },
        domain=FUSED_DOMAIN,
        num_outputs=3,
    )
    flat = ir.node("Reshape", [attention.outputs[0], flat_shape])
    last_node = match.output.producer()
    assert last_node is not None
    ir.convenience.replace_nodes_and_values(
        graph,
        last_node,
        [last_node],
        [packed, attention, flat],
        [match.output, match.key.present, match.value.present],
        [flat.outputs[0], *attention.outputs[1:]],
    )
