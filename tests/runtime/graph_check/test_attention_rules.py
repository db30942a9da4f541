"""The fused attention and its norm: what they are of, and where the attention writes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from graphs.contract import Phase, Revision, graph_inputs
from runtime.graph_check.graph_file import given_value
from runtime.graph_check.limits import GraphLimits
from runtime.graph_check.values import Value
from tests.runtime.graph_check.reading import (
    CONFIG,
    LIMITS,
    Input,
    const,
    device_limits,
    made,
    node,
    numbers,
    refused,
    told,
)

HEADS = {"num_heads": 4, "kv_num_heads": 4, "do_rotary": 0, "scale": 0.5}
KEY, VALUE = "past_key_values.0.key", "past_key_values.0.value"


def of(kind: str, *inputs: Input, **attributes: Any) -> Value:
    """What an operator makes, with the operator."""
    maker = node(kind, *inputs, **attributes)
    (found,) = made(kind, *maker.inputs, **attributes)
    found.source = maker
    return found


def graph_input(name: str, limits: GraphLimits) -> Value:
    contract = (limits.config, limits.phase, limits.cache_dtype, limits.revision)
    (spec,) = [spec for spec in graph_inputs(*contract) if spec.name == name]
    return given_value(spec, limits)


def one() -> Value:
    return numbers(1, dtype="int32")


def attention(limits: GraphLimits = LIMITS) -> list[Input]:
    """The inputs of an attention as the passes write them."""
    packed = f"{limits.cache_dtype} [B, {'S' if limits.phase is Phase.PREFILL else 1}, 96]"
    if limits.revision is Revision.DEVICE:
        lengths = [graph_input("last_positions", limits), graph_input("total_length", limits)]
    else:
        past, new = graph_input("past_lengths", limits), graph_input("new_lengths", limits)
        last = of("Sub", of("Add", past, of("Max", new, one())), one())
        tokens = of("Cast", of("Shape", graph_input("input_ids", limits), start=1), to=6)
        lengths = [last, of("Add", of("ReduceMax", past, keepdims=1), tokens)]
    return [packed, None, None, graph_input(KEY, limits), graph_input(VALUE, limits), *lengths]


def changed(place: int, by: Input, limits: GraphLimits = LIMITS) -> list[Input]:
    found = attention(limits)
    found[place] = by
    return found


def test_both_revisions_and_phases() -> None:
    cache = "float32 [batch, 4, capacity, 8]"
    expected = f"float32 [batch, sequence, 32]; {cache}; {cache}"
    assert told("GroupQueryAttention", *attention(), outputs=3, **HEADS) == expected
    decode = replace(LIMITS, phase=Phase.DECODE)
    found = told("GroupQueryAttention", *attention(decode), outputs=3, limits=decode, **HEADS)
    assert found == f"float32 [batch, 1, 32]; {cache}; {cache}"
    device = device_limits()
    found = told("GroupQueryAttention", *attention(device), outputs=3, limits=device, **HEADS)
    assert found == expected.replace("float32", "float16")


@pytest.mark.parametrize(
    "changes",
    [{"num_heads": 2}, {"kv_num_heads": 2}, {"do_rotary": 1}, {"num_heads": 0}, {"kv_num_heads": -4}],
)
def test_heads(changes: dict[str, int]) -> None:
    given = {**HEADS, **changes}
    refused("heads are not the model's", "GroupQueryAttention", *attention(), outputs=3, **given)


@pytest.mark.parametrize("name", HEADS)
def test_no_attribute_is_left_out(name: str) -> None:
    kept = {key: number for key, number in HEADS.items() if key != name}
    refused("heads are not the model's", "GroupQueryAttention", *attention(), outputs=3, **kept)


def test_heads_that_the_kernel_does_not_take() -> None:
    narrow = replace(LIMITS, config=replace(CONFIG, hidden_dim=16))
    given = attention()
    refused("heads of that width", "GroupQueryAttention", *given, outputs=3, limits=narrow, **HEADS)


@pytest.mark.parametrize(
    ("place", "other", "why"),
    [
        (0, "float32 [B, S, 32]", "new tokens do not agree"),
        (0, "float32 [B, S, 97]", "new tokens do not agree"),
        (0, "float32 [S, S, 96]", "new tokens do not agree"),
        (0, "float32 [B*S, 96]", "new tokens do not agree"),
        (0, "float16 [B, S, 96]", "new tokens do not agree"),
        (0, "float32 [B, 1, 96]", "the length is not"),
        (0, "float32 [B, C, 96]", "the length is not"),
        (3, "float32 [B, 4, C, 8]", "not of the graph's cache"),
        (4, "float32 [B, 4, C, 8]", "not of the graph's cache"),
        (3, const("float32 [4, 4, 8, 8]"), "not of the graph's cache"),
        (5, "int32 [B]", "positions are not those"),
        (6, "int32 [1]", "the length is not"),
        (6, numbers(4, dtype="int32"), "the length is not"),
    ],
)
def test_inputs(place: int, other: Input, why: str) -> None:
    refused(why, "GroupQueryAttention", *changed(place, other), outputs=3, **HEADS)


def test_one_cache_for_both() -> None:
    given = changed(4, graph_input(KEY, LIMITS))
    refused("one cache for both", "GroupQueryAttention", *given, outputs=3, **HEADS)


def test_positions_are_those_of_the_passes() -> None:
    past, new = graph_input("past_lengths", LIMITS), graph_input("new_lengths", LIMITS)
    two = numbers(2, dtype="int32")
    written = of("Max", new, one())
    for wrong in (
        past,
        new,
        of("Add", past, written),
        of("Sub", of("Add", past, written), two),
        of("Sub", of("Add", past, of("Max", new, two)), one()),
        of("Sub", of("Add", written, past), one()),
        of("Sub", of("Add", past, new), one()),
        of("Sub", of("Add", new, written), one()),
        of("Add", of("Add", past, written), one()),
        of("Sub", of("Sub", past, written), one()),
        of("Sub", of("Add", past, of("Min", new, one())), one()),
    ):
        refused("positions are not", "GroupQueryAttention", *changed(5, wrong), outputs=3, **HEADS)


def test_the_length_is_that_of_the_passes() -> None:
    past, ids = graph_input("past_lengths", LIMITS), graph_input("input_ids", LIMITS)
    longest = of("ReduceMax", past, keepdims=1)
    tokens = of("Cast", of("Shape", ids, start=1), to=6)
    for wrong in (
        longest,
        tokens,
        of("Add", longest, longest),
        of("Add", tokens, longest),
        of("Sub", longest, tokens),
        of("Add", longest, of("Cast", of("Shape", ids), to=6)),
        of("Add", of("ReduceMax", graph_input("new_lengths", LIMITS), keepdims=1), tokens),
        of("Add", longest, of("Cast", of("Shape", past), to=6)),
    ):
        refused("the length is not", "GroupQueryAttention", *changed(6, wrong), outputs=3, **HEADS)


def test_lengths_of_another_revision() -> None:
    device = device_limits()
    host = attention()
    given = attention(device)
    for place, why in ((5, "positions are not"), (6, "the length is not")):
        wrong = [*given[:place], host[place], *given[place + 1 :]]
        refused(why, "GroupQueryAttention", *wrong, outputs=3, limits=device, **HEADS)


# === The norm ===

X, GAMMA = "float16 [B, S, 32]", const("float16 [32]")


def test_skip_norm() -> None:
    expected = "float16 [batch, sequence, 32]"
    assert told("SkipLayerNormalization", X, X, GAMMA, epsilon=1e-5) == expected
    assert told("SkipLayerNormalization", X, X, GAMMA, GAMMA, GAMMA, epsilon=0.0) == expected
    found = told("SkipLayerNormalization", X, X, GAMMA, None, GAMMA, outputs=4, epsilon=1e-5)
    assert found == "; ".join([expected] * 4)


@pytest.mark.parametrize(
    ("place", "other", "why"),
    [
        (0, "float16 [B, 1, 32]", "shapes do not agree"),
        (1, "float16 [B, S, 31]", "shapes do not agree"),
        (1, "float16 [1, S, 32]", "shapes do not agree"),
        (1, "float16 [S, 32]", "shapes do not agree"),
        (1, "float32 [B, S, 32]", "one kind of floats"),
        (2, const("float16 [31]"), "input 2 must be"),
        (2, const("float16 []"), "input 2 must be"),
        (3, const("float32 [32]"), "input 3 must be"),
        (3, "float16 [32]", "input 3 must be"),
        (4, const("float16 [1, 32]"), "input 4 must be"),
    ],
)
def test_inputs_of_skip_norm(place: int, other: Input, why: str) -> None:
    given: list[Input] = [X, X, GAMMA, GAMMA, GAMMA]
    given[place] = other
    refused(why, "SkipLayerNormalization", *given, epsilon=1e-5)


def test_skip_norm_is_of_rows_of_floats() -> None:
    flat = "float16 [B*S, 32]"
    assert (
        told("SkipLayerNormalization", flat, flat, GAMMA, epsilon=1e-5)
        == "float16 [batch*sequence, 32]"
    )
    for shape in ("[32]", "[B, 4, S, 32]"):
        given = [f"float16 {shape}", f"float16 {shape}", GAMMA]
        refused("shapes do not agree", "SkipLayerNormalization", *given)
    refused("one kind of floats", "SkipLayerNormalization", "int32 [B, 32]", "int32 [B, 32]", GAMMA)


def test_epsilon_of_skip_norm() -> None:
    for wrong in ({}, {"epsilon": -1e-5}, {"epsilon": float("nan")}):
        refused("epsilon is below 0", "SkipLayerNormalization", X, X, GAMMA, **wrong)
