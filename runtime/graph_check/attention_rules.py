"""Rules of the attention and the norm that are ONNX Runtime's own.

The attention's kernel writes to the cache where it is told to and compares that with nothing. So what
tells it must be the inputs of the graph, or what the passes compute of them, and nothing else.
"""

from __future__ import annotations

from graphs.contract import (
    INPUT_IDS,
    LAST_POSITIONS,
    NEW_LENGTHS,
    PAST_LENGTHS,
    TOTAL_LENGTH,
    Revision,
    cache_shape,
)
from runtime.graph_check.element_rules import FLOATS, check_vector
from runtime.graph_check.sizes import BATCH, CAPACITY
from runtime.graph_check.values import Node, Value

HEAD_DIM_MULTIPLE = 8  # the kernel takes heads of a multiple of this width

# An input of the graph, a number, or an operator with what it is of.
Pattern = str | int | tuple["str | Pattern", ...]
_LAST_POSITIONS: Pattern = ("Sub", ("Add", PAST_LENGTHS, ("Max", NEW_LENGTHS, 1)), 1)
_TOTAL_LENGTH: Pattern = ("Add", ("ReduceMax", PAST_LENGTHS), ("Cast", ("Shape", INPUT_IDS)))


def _is(value: Value | None, pattern: Pattern) -> bool:
    """Whether a value is what a pattern says."""
    if value is None:
        return False
    if isinstance(pattern, int):
        return value.initializer and value.numbers() == [pattern]
    if isinstance(pattern, str):
        return value.source == pattern
    node = value.source
    if not isinstance(node, Node) or node.kind != pattern[0]:
        return False
    parts = pattern[1:]
    return len(node.inputs) == len(parts) and all(map(_is, node.inputs, parts))


def group_query_attention(node: Node) -> list[Value]:
    """Attention of new tokens to a cache, which they are written to."""
    limits, config = node.limits, node.limits.config
    packed, key, value = node.input(0), node.input(3), node.input(4)
    heads = {"num_heads": config.num_heads, "kv_num_heads": config.num_heads, "do_rotary": 0}
    given = {name: number for name, number in node.attributes.items() if name != "scale"}
    node.require(given == heads and "scale" in node.attributes, "the heads are not the model's")
    node.require(config.head_dim % HEAD_DIM_MULTIPLE == 0, "the kernel takes no heads of that width")
    sizes = {"batch": BATCH, "capacity": CAPACITY}
    cache = tuple(sizes[d] if isinstance(d, str) else d for d in cache_shape(config))
    for each in (key, value):
        node.require(
            isinstance(each.source, str) and each.shape == cache and each.dtype == limits.cache_dtype,
            "it is not of the graph's cache",
        )
    node.require(key.source != value.source, "it has one cache for both")
    tokens = len(packed.shape) == 3 and packed.shape[0] == BATCH
    node.require(
        tokens and packed.shape[2] == 3 * config.hidden_dim and packed.dtype == limits.cache_dtype,
        "the new tokens do not agree with the cache",
    )
    _check_lengths(node)
    made = (*packed.shape[:2], config.hidden_dim)
    return [Value(packed.dtype, made), Value(key.dtype, cache), Value(value.dtype, cache)]


def _check_lengths(node: Node) -> None:
    device = node.limits.revision is Revision.DEVICE
    positions: Pattern = LAST_POSITIONS if device else _LAST_POSITIONS
    total: Pattern = TOTAL_LENGTH if device else _TOTAL_LENGTH
    tokens = node.limits.sequence
    shape = node.input(0).shape
    node.require(
        _is(node.given(5), positions) and node.input(5).shape == (BATCH,),
        "the positions are not those that follow from the graph's inputs",
    )
    node.require(
        _is(node.given(6), total) and node.input(6).shape == (1,) and shape[1] == tokens,
        "the length is not the one that follows from the graph's inputs",
    )


def skip_layer_normalization(node: Node) -> list[Value]:
    """A norm of the sum of two values and a bias; the sum is an output too."""
    value, skip = node.input(0), node.input(1)
    node.require(value.dtype in FLOATS and value.dtype == skip.dtype, "they are not one kind of floats")
    node.require(value.shape == skip.shape and len(value.shape) in (2, 3), "the shapes do not agree")
    node.require(node.attributes.get("epsilon", -1.0) >= 0, "its epsilon is below 0")
    for place in (2, 3, 4):
        check_vector(node, place, value)
    return [Value(value.dtype, value.shape) for _ in node.outputs]
