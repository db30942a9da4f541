"""The pass that fuses attention over the cache, on graphs made by hand."""

from __future__ import annotations

import re

import numpy as np
import pytest

for package in ("onnx", "onnx_ir", "onnxruntime"):
    pytest.importorskip(package)

from graphs.contract import ModelConfig  # noqa: E402
from graphs.passes.attention import fuse_attention  # noqa: E402
from graphs.passes.matching import FUSED_DOMAIN  # noqa: E402
from graphs.program import Program  # noqa: E402
from tests.graphs.pass_helpers import Arrays, assert_rewritten, edited, node_list, ops  # noqa: E402

CONFIG = ModelConfig(6, 1, 2, 16, 16, 64)  # two heads of 8
CAPACITY = 12
SCALE = 0.25

ATTENTION = """
g (int64[n, s] input_ids, int32[n] past_lengths, int32[n] new_lengths, float[t, 48] qkv,
   float[n, 2, 12, 8] past_key, float[n, 2, 12, 8] past_value,
   int64[n, 2, s, 3] places, int64[1] used, float[n, 1, s, u] mask)
=> (float[t, 16] y, float[n, 2, 12, 8] present_key, float[n, 2, 12, 8] present_value)
<float scale = {0.25}, int64[2] sizes = {2, 8}, int64[2] flat = {-1, 16},
 int64[1] zero = {0}, int64[1] slots = {2}>
{
    shape = Shape (input_ids)
    heads = Concat <axis = 0> (shape, sizes)
    q, k, v = Split <axis = -1, num_outputs = 3> (qkv)
    q_heads = Reshape (q, heads)
    k_heads = Reshape (k, heads)
    v_heads = Reshape (v, heads)
    scaled = Mul (q_heads, scale)
    query = Transpose <perm = [0, 2, 1, 3]> (scaled)
    new_key = Transpose <perm = [0, 2, 1, 3]> (k_heads)
    new_value = Transpose <perm = [0, 2, 1, 3]> (v_heads)
    present_key = ScatterND (past_key, places, new_key)
    present_value = ScatterND (past_value, places, new_value)
    used_key = Slice (present_key, zero, used, slots)
    used_value = Slice (present_value, zero, used, slots)
    turned = Transpose <perm = [0, 1, 3, 2]> (used_key)
    scores = MatMul (query, turned)
    masked = Add (scores, mask)
    weights = Softmax <axis = -1> (masked)
    weighted = MatMul (weights, used_value)
    rows = Transpose <perm = [0, 2, 1, 3]> (weighted)
    y = Reshape (rows, flat)
}
"""

# With one token the tracer lays heads out by a reshape alone.
ONE_TOKEN = [
    ("int64[1] zero", "int64[1] one = {1}, int64[1] zero"),
    (
        "    q, k, v =",
        "    batch = Shape <end = 1> (input_ids)\n"
        "    by_heads = Concat <axis = 0> (batch, slots, one, eight)\n    q, k, v =",
    ),
    ("int64[1] one =", "int64[1] eight = {8}, int64[1] one ="),
    ("Transpose <perm = [0, 2, 1, 3]> (scaled)", "Reshape (scaled, by_heads)"),
    ("Transpose <perm = [0, 2, 1, 3]> (k_heads)", "Reshape (k, by_heads)"),
    ("Transpose <perm = [0, 2, 1, 3]> (v_heads)", "Reshape (v, by_heads)"),
    ("    k_heads = Reshape (k, heads)\n    v_heads = Reshape (v, heads)\n", ""),
    ("    rows = Transpose <perm = [0, 2, 1, 3]> (weighted)\n", ""),
    ("Reshape (rows, flat)", "Reshape (weighted, flat)"),
]


def inputs(past: list[int], sequence: int, heads: int = 2) -> Arrays:
    """Rows with as many new tokens each, a cache full of noise, and the mask and places they have."""
    generator = np.random.default_rng(0)

    def noise(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape).astype(np.float32)

    batch, used = len(past), max(past) + sequence
    positions = np.array(past)[:, None] + np.arange(sequence)
    places = np.stack(
        np.broadcast_arrays(
            np.arange(batch)[:, None, None], np.arange(heads)[:, None], positions[:, None]
        ),
        axis=-1,
    )
    seen = np.arange(used) <= positions[:, None, :, None]
    return {
        "input_ids": np.zeros((batch, sequence), np.int64),
        "past_lengths": np.array(past, np.int32),
        "new_lengths": np.full(batch, sequence, np.int32),
        "qkv": noise(batch * sequence, 48),
        "past_key": noise(batch, heads, CAPACITY, 16 // heads),
        "past_value": noise(batch, heads, CAPACITY, 16 // heads),
        "places": places.astype(np.int64),
        "used": np.array([used]),
        "mask": np.where(seen, 0.0, -1e9).astype(np.float32),
    }


def check(
    text: str, expected: int, past: list[int], sequence: int, config: ModelConfig = CONFIG
) -> Program:
    """The outputs agree, and the caches in the slots that are in use."""

    def visible(outputs: Arrays) -> Arrays:
        return {
            name: np.concatenate([value[i, :, : n + sequence].ravel() for i, n in enumerate(past)])
            if name.startswith("present")
            else value
            for name, value in outputs.items()
        }

    values = inputs(past, sequence, config.num_heads)
    return assert_rewritten(
        text, set(), fuse_attention, expected, config=config, inputs=values, visible=visible
    )


MATCHING = {
    "as it is traced": [],
    "scale turned": [("Mul (q_heads, scale)", "Mul (scale, q_heads)")],
    "mask turned": [("Add (scores, mask)", "Add (mask, scores)")],
    "axis counted from the start": [("Softmax <axis = -1>", "Softmax <axis = 3>")],
    "the softmax's own axis": [("Softmax <axis = -1>", "Softmax")],
    "a scale in brackets": [("float scale = {0.25}", "float[1] scale = {0.25}")],
    "a constant node": [
        ("float scale = {0.25}, ", ""),
        ("    shape =", "    scale = Constant <value = float {0.25}> ()\n    shape ="),
    ],
}


@pytest.mark.parametrize(
    ("past", "sequence"), [([0], 1), ([0, 0], 5), ([4], 3), ([6], 6), ([3, 0, 11], 1)]
)
@pytest.mark.parametrize("edits", MATCHING.values(), ids=MATCHING)
def test_attention_in_other_orders(
    edits: list[tuple[str, str]], past: list[int], sequence: int
) -> None:
    program = check(edited(ATTENTION, edits), 1, past, sequence)
    left = ops(program.graph)
    assert left["GroupQueryAttention"] == 1
    assert not {"Softmax", "MatMul", "Split", "ScatterND", "Slice", "Transpose", "Mul"} & set(left)


@pytest.mark.parametrize("past", [[0], [5], [3, 0, 11]])
def test_attention_of_one_token(past: list[int]) -> None:
    program = check(edited(ATTENTION, ONE_TOKEN), 1, past, 1)
    assert "Softmax" not in ops(program.graph)


def test_what_the_operator_is_given() -> None:
    program = check(ATTENTION, 1, [4], 3)
    (node,) = (node for node in program.graph if node.domain == FUSED_DOMAIN)
    packed, *absent, key, value, last, total = node.inputs
    assert absent == [None, None]
    assert packed.producer().inputs[0].name == "qkv"
    assert (key.name, value.name) == ("past_key", "past_value")
    assert [output.name for output in node.outputs[1:]] == ["present_key", "present_value"]
    assert node.attributes["scale"].as_float() == SCALE
    assert node.attributes["num_heads"].as_int() == node.attributes["kv_num_heads"].as_int() == 2
    assert last.producer().op_type == "Sub"
    assert total.producer().op_type == "Add"
    assert program.model.opset_imports[FUSED_DOMAIN] == 1
    assert "scale" not in program.graph.initializers


def two_layers() -> str:
    """A second attention, with a projection and caches of its own, over the same tokens."""
    start, end = ATTENTION.index("    q, k, v"), ATTENTION.index("}\n", ATTENTION.index("    y ="))
    layer = ATTENTION[start:end]
    own = [name for names in re.findall(r"^ +([\w, ]+) = ", layer, re.M) for name in names.split(", ")]
    own += ["qkv", "past_key", "past_value"]
    text = ATTENTION[:end] + re.sub(rf"\b({'|'.join(own)})\b", r"\1_2", layer) + ATTENTION[end:]
    declared = rf"(float\[[^]]*\] )({'|'.join(own)})\b"
    return re.sub(declared, r"\1\2, \1\2_2", text)


def test_two_layers_share_the_lengths() -> None:
    values = inputs([4], 3)
    for name in ("qkv", "past_key", "past_value"):
        values[f"{name}_2"] = values[name][..., ::-1].copy()

    def visible(outputs: Arrays) -> Arrays:
        return {
            name: value[:, :, :7] if "present" in name else value for name, value in outputs.items()
        }

    program = assert_rewritten(
        two_layers(), set(), fuse_attention, 2, config=CONFIG, inputs=values, visible=visible
    )
    one, two = (node for node in program.graph if node.domain == FUSED_DOMAIN)
    assert one.inputs[5:] == two.inputs[5:]
    assert [value.name for value in two.inputs[3:5]] == ["past_key_2", "past_value_2"]
    assert ops(program.graph)["ReduceMax"] == 1


# Edits after which a graph is no attention over the cache as the operator computes it. Sequence, heads,
# slots in use and the width of a head are chosen so that axes in another order fit all the same.
OTHERS = {
    "softmax over other slots": [("Softmax <axis = -1>", "Softmax <axis = 2>")],
    "no softmax": [("Softmax <axis = -1> (masked)", "Abs (masked)")],
    "no mask": [("Add (scores, mask)", "Abs (scores)")],
    "a mask that multiplies": [("Add (scores, mask)", "Mul (scores, mask)")],
    "two products in the scores": [
        ("    masked", "    more = MatMul (query, turned)\n    masked"),
        ("Add (scores, mask)", "Add (scores, more)"),
    ],
    "no scale": [("Mul (q_heads, scale)", "Abs (q_heads)")],
    "a scale that is divided by": [("Mul (q_heads, scale)", "Div (q_heads, scale)")],
    "a scale from outside": [
        ("float scale = {0.25}, ", ""),
        ("float[t, 48] qkv", "float[t, 48] qkv, float[1, 8] scale"),
    ],
    "a scale of each channel": [("float scale = {0.25}", "float[8] scale = {1, 2, 3, 4, 5, 6, 7, 8}")],
    "the keys scaled": [
        ("Mul (q_heads, scale)", "Mul (k_heads, scale)"),
        ("3]> (scaled)", "3]> (q_heads)"),
        ("3]> (k_heads)", "3]> (scaled)"),
    ],
    "parts in another order": [("q, k, v = Split", "k, q, v = Split")],
    "values from the keys": [("Reshape (v, heads)", "Reshape (k, heads)")],
    "parts of two projections": [
        ("    q_heads", "    other = Abs (k)\n    q_heads"),
        ("Reshape (k, heads)", "Reshape (other, heads)"),
    ],
    "queries by sequence": [
        ("query = Transpose <perm = [0, 2, 1,", "query = Transpose <perm = [0, 1, 2,")
    ],
    "keys by sequence": [
        ("new_key = Transpose <perm = [0, 2, 1,", "new_key = Transpose <perm = [0, 1, 2,")
    ],
    "values by sequence": [
        ("new_value = Transpose <perm = [0, 2, 1,", "new_value = Transpose <perm = [0, 1, 2,")
    ],
    "keys that are not turned": [("[0, 1, 3, 2]", "[0, 1, 2, 3]")],
    "an output that is not turned": [
        ("rows = Transpose <perm = [0, 2, 1,", "rows = Transpose <perm = [0, 1, 2,")
    ],
    "keys of the past alone": [("Slice (present_key,", "Slice (past_key,")],
    "values of the past alone": [("Slice (present_value,", "Slice (past_value,")],
    "keys added to the past": [("= ScatterND (past_key", '= ScatterND <reduction = "add"> (past_key')],
    "values added to the past": [
        ("= ScatterND (past_value", '= ScatterND <reduction = "add"> (past_value')
    ],
    "the whole cache": [
        ("Slice (present_key, zero, used, slots)", "Abs (present_key)"),
        ("Slice (present_value, zero, used, slots)", "Abs (present_value)"),
        ("s, u] mask", "s, 12] mask"),
    ],
    "weights that others use": [
        ("=> (float[t, 16] y,", "=> (float[t, 16] y, float[n, 2, s, u] extra,"),
        ("    weighted =", "    extra = Abs (weights)\n    weighted ="),
    ],
    "an output that others use": [
        ("=> (float[t, 16] y,", "=> (float[t, 16] y, float[n, 2, s, 8] extra,"),
        ("    rows =", "    extra = Abs (weighted)\n    rows ="),
    ],
    "weights that others use afterwards": [
        ("=> (float[t, 16] y,", "=> (float[t, 16] y, float[n, 2, s, u] extra,"),
        ("    rows =", "    extra = Abs (weights)\n    rows ="),
    ],
    "weights that are given out": [
        ("=> (float[t, 16] y,", "=> (float[t, 16] y, float[n, 2, s, u] weights,")
    ],
    "an output that others use afterwards": [
        ("=> (float[t, 16] y,", "=> (float[t, 16] y, float[n, 2, s, 8] extra,"),
        ("(rows, flat)", "(rows, flat)\n    extra = Abs (weighted)"),
    ],
    "an output that is given out": [
        ("=> (float[t, 16] y,", "=> (float[t, 16] y, float[n, 2, s, 8] weighted,")
    ],
    "an output by heads": [
        ("=> (float[t, 16] y,", "=> (float[n, s, 2, 8] y,"),
        ("Reshape (rows, flat)", "Abs (rows)"),
    ],
}


@pytest.mark.parametrize("edits", OTHERS.values(), ids=OTHERS)
def test_what_is_not_attention_over_the_cache_stays(edits: list[tuple[str, str]]) -> None:
    text = edited(ATTENTION, edits)
    values = inputs([6], 2)
    values["scale"] = np.full((1, 8), SCALE, np.float32)
    if "12] mask" in text:
        values["mask"] = np.concatenate(
            [values["mask"], np.full((1, 1, 2, 4), -1e9, np.float32)], axis=-1
        )
    program = assert_rewritten(text, set(), fuse_attention, 0, config=CONFIG, inputs=values)
    assert FUSED_DOMAIN not in program.model.opset_imports


def test_heads_of_a_width_that_the_operator_does_not_take_stay() -> None:
    text = edited(
        ATTENTION,
        [("n, 2, 12, 8]", "n, 4, 12, 4]"), ("n, 2, s, 3]", "n, 4, s, 3]"), ("{2, 8}", "{4, 4}")],
    )
    config = ModelConfig(6, 1, 4, 16, 16, 64)
    assert config.head_dim == 4
    program = check(text, 0, [6], 2, config)
    assert ("Softmax", "weights") in node_list(program.graph)
