"""The pass that fuses layer normalizations, on graphs made by hand."""

from __future__ import annotations

import re

import numpy as np
import pytest

for package in ("onnx", "onnx_ir", "onnxruntime"):
    pytest.importorskip(package)

from graphs.passes.layer_norm import ONES, fuse_layer_norm  # noqa: E402
from tests.graphs.pass_helpers import WIDTH, assert_rewritten, edited  # noqa: E402

NORM = """
g (float[n, 4] x, float[4] gamma, float[4] beta) => (float[n, 4] y)
<float epsilon = {0.25}, int64[1] axes = {-1}>
{
    mean = ReduceMean <keepdims = 1> (x, axes)
    centred = Sub (x, mean)
    square = Mul (centred, centred)
    variance = ReduceMean <keepdims = 1> (square, axes)
    total = Add (variance, epsilon)
    deviation = Sqrt (total)
    inverse = Reciprocal (deviation)
    scale = Mul (gamma, inverse)
    negative = Neg (mean)
    centre = Mul (negative, scale)
    shift = Add (centre, beta)
    scaled = Mul (x, scale)
    y = Add (scaled, shift)
}
"""
VECTORS = {"gamma", "beta"}

MATCHING_NORMS = {
    "as Keras traces it": [],
    "sum turned": [("y = Add (scaled, shift)", "y = Add (shift, scaled)")],
    "shift turned": [("shift = Add (centre, beta)", "shift = Add (beta, centre)")],
    "scale turned": [("scale = Mul (gamma, inverse)", "scale = Mul (inverse, gamma)")],
    "scaled turned": [("scaled = Mul (x, scale)", "scaled = Mul (scale, x)")],
    "centre turned": [("centre = Mul (negative, scale)", "centre = Mul (scale, negative)")],
    "epsilon turned": [("Add (variance, epsilon)", "Add (epsilon, variance)")],
    "three dimensions": [("float[n, 4] x", "float[n, 3, 4] x"), ("float[n, 4] y", "float[n, 3, 4] y")],
    "constants as nodes": [
        ("<float epsilon = {0.25}, int64[1] axes = {-1}>", ""),
        (
            "    mean =",
            "epsilon = Constant <value = float {0.25}> ()\n"
            "axes = Constant <value_ints = [-1]> ()\n    mean =",
        ),
    ],
    "reshaped weights": [
        ("axes = {-1}>", "axes = {-1}, int64[2] row = {1, 4}>"),
        (
            "    mean =",
            "wide_gamma = Reshape (gamma, row)\nwide_beta = Reshape (beta, row)\n    mean =",
        ),
        ("Mul (gamma, inverse)", "Mul (wide_gamma, inverse)"),
        ("Add (centre, beta)", "Add (centre, wide_beta)"),
    ],
}

# Edits after which a graph is no layer normalization, with scale and offset or without.
OTHER_STATISTICS = {
    "another axis": [("axes = {-1}", "axes = {0}")],
    "two axes": [("int64[1] axes = {-1}", "int64[2] axes = {0, 1}")],
    "no axes": [("ReduceMean <keepdims = 1> (x, axes)", "ReduceMean <keepdims = 1> (x)")],
    "another axis for the variance": [
        ("axes = {-1}>", "axes = {-1}, int64[1] rows = {0}>"),
        ("(square, axes)", "(square, rows)"),
    ],
    "mean without its dimension": [
        ("float[n, 4]", "float[4, 4]"),
        ("mean = ReduceMean <keepdims = 1>", "mean = ReduceMean <keepdims = 0>"),
    ],
    "variance around something else": [
        ("    mean =", "other = Abs (x)\n    mean ="),
        ("Sub (x, mean)", "Sub (x, other)"),
    ],
    "variance of something else": [
        ("    mean =", "other = Abs (x)\n    mean ="),
        ("Sub (x, mean)", "Sub (other, mean)"),
    ],
    "no square": [("square = Mul (centred, centred)", "square = Mul (centred, x)")],
    "absolute deviation": [("square = Mul (centred, centred)", "square = Abs (centred)")],
    "mean of something else": [
        ("    mean =", "other = Abs (x)\nsecond = ReduceMean <keepdims = 1> (other, axes)\n    mean ="),
        ("Neg (mean)", "Neg (second)"),
    ],
    "mean added": [("negative = Neg (mean)", "negative = Abs (mean)")],
    "no root": [("deviation = Sqrt (total)", "deviation = Abs (total)")],
    "no reciprocal": [("inverse = Reciprocal (deviation)", "inverse = Neg (deviation)")],
    "subtracted at the end": [("y = Add (scaled, shift)", "y = Sub (scaled, shift)")],
    "no epsilon": [("deviation = Sqrt (total)", "deviation = Sqrt (variance)")],
}

OTHER_NORMS = {
    **OTHER_STATISTICS,
    "axes from outside": [
        (", int64[1] axes = {-1}", ""),
        ("float[4] beta)", "float[4] beta, float[1] zero)"),
        ("    mean =", "none = Cast <to = 7> (zero)\naxes = Sub (none, none)\n    mean ="),
    ],
    "gamma that is computed": [
        ("    mean =", "half = Abs (gamma)\n    mean ="),
        ("Mul (gamma, inverse)", "Mul (half, inverse)"),
    ],
    "beta that is computed": [
        ("    mean =", "half = Abs (beta)\n    mean ="),
        ("Add (centre, beta)", "Add (centre, half)"),
    ],
    "epsilon from outside": [
        ("float epsilon = {0.25}, ", ""),
        ("float[4] beta)", "float[4] beta, float[1] noise)"),
        ("    mean =", "epsilon = Abs (noise)\n    mean ="),
    ],
    "two scales": [
        ("    scaled =", "second = Mul (scale, scale)\n    scaled ="),
        ("scaled = Mul (x, scale)", "scaled = Mul (x, second)"),
    ],
    "something else scaled": [
        ("    mean =", "other = Abs (x)\n    mean ="),
        ("scaled = Mul (x, scale)", "scaled = Mul (other, scale)"),
    ],
}


@pytest.mark.parametrize("edits", MATCHING_NORMS.values(), ids=MATCHING_NORMS)
def test_layer_norm_in_other_orders(edits: list[tuple[str, str]]) -> None:
    program = assert_rewritten(edited(NORM, edits), VECTORS, fuse_layer_norm, 1)
    (norm,) = program.graph
    assert norm.op_type == "LayerNormalization"
    assert [value.name for value in norm.inputs] == ["x", "gamma", "beta"]
    assert norm.attributes["epsilon"].as_float() == 0.25
    assert norm.outputs[0].name == "y"
    assert dict(program.graph.initializers) == {}


@pytest.mark.parametrize("edits", OTHER_NORMS.values(), ids=OTHER_NORMS)
def test_what_is_not_a_layer_norm_stays(edits: list[tuple[str, str]]) -> None:
    assert_rewritten(edited(NORM, edits), VECTORS, fuse_layer_norm, 0)


@pytest.mark.parametrize("weights", [{"gamma"}, {"beta"}, set()])
def test_scales_that_are_no_weights_stay(weights: set[str]) -> None:
    assert_rewritten(NORM, weights, fuse_layer_norm, 0)


def test_a_value_that_others_use_stays() -> None:
    text = edited(NORM, [("=> (float[n, 4] y)", "=> (float[n, 4] y, float[n, 1] mean)")])
    program = assert_rewritten(text, VECTORS, fuse_layer_norm, 1)
    assert sorted(node.op_type for node in program.graph) == ["LayerNormalization", "ReduceMean"]


def twice(text: str) -> str:
    """A second norm of what the first one gives."""
    start, end = text.index("{\n") + 2, text.rindex("}")
    first = text[start:end].replace("y = Add", "x2 = Add")
    names = r"\b(?!gamma|beta|epsilon|axes|keepdims)([a-z]+)\b"
    second = re.sub(names, r"\g<1>2", text[start:end]).replace("y2 = Add", "y = Add")
    return text[:start] + first + second + text[end:]


def test_two_norms_in_a_row() -> None:
    program = assert_rewritten(twice(NORM), VECTORS, fuse_layer_norm, 2)
    assert [node.op_type for node in program.graph] == ["LayerNormalization"] * 2


# === Without scale and offset ===

PLAIN = """
g (float[n, 4] x) => (float[n, 4] y)
<float epsilon = {0.25}, int64[1] axes = {-1}>
{
    mean = ReduceMean <keepdims = 1> (x, axes)
    centred = Sub (x, mean)
    square = Mul (centred, centred)
    variance = ReduceMean <keepdims = 1> (square, axes)
    total = Add (variance, epsilon)
    deviation = Sqrt (total)
    inverse = Reciprocal (deviation)
    negative = Neg (mean)
    shift = Mul (negative, inverse)
    scaled = Mul (x, inverse)
    y = Add (scaled, shift)
}
"""

MATCHING_PLAIN_NORMS = {
    "as Keras traces it": [],
    "sum turned": [("y = Add (scaled, shift)", "y = Add (shift, scaled)")],
    "shift turned": [("shift = Mul (negative, inverse)", "shift = Mul (inverse, negative)")],
    "scaled turned": [("scaled = Mul (x, inverse)", "scaled = Mul (inverse, x)")],
    "epsilon turned": [("Add (variance, epsilon)", "Add (epsilon, variance)")],
    "three dimensions": [("float[n, 4] x", "float[n, 3, 4] x"), ("float[n, 4] y", "float[n, 3, 4] y")],
}

OTHER_PLAIN_NORMS = {
    **OTHER_STATISTICS,
    "two scales": [
        ("    scaled =", "second = Mul (inverse, inverse)\n    scaled ="),
        ("scaled = Mul (x, inverse)", "scaled = Mul (x, second)"),
    ],
    "the mean by another scale": [
        ("    shift =", "second = Mul (inverse, inverse)\n    shift ="),
        ("shift = Mul (negative, inverse)", "shift = Mul (negative, second)"),
    ],
    "something else scaled": [
        ("    mean =", "other = Abs (x)\n    mean ="),
        ("scaled = Mul (x, inverse)", "scaled = Mul (other, inverse)"),
    ],
    "a scale and no offset": [
        ("float[n, 4] x)", "float[n, 4] x, float[4] gamma)"),
        (
            "inverse = Reciprocal (deviation)",
            "part = Reciprocal (deviation)\n    inverse = Mul (gamma, part)",
        ),
    ],
    "an offset and no scale": [
        ("float[n, 4] x)", "float[n, 4] x, float[4] beta)"),
        ("    y =", "    moved = Add (shift, beta)\n    y ="),
        ("y = Add (scaled, shift)", "y = Add (scaled, moved)"),
    ],
    "epsilon from outside": [
        ("float epsilon = {0.25}, ", ""),
        ("float[n, 4] x)", "float[n, 4] x, float[1] noise)"),
        ("    mean =", "epsilon = Abs (noise)\n    mean ="),
    ],
}


@pytest.mark.parametrize("edits", MATCHING_PLAIN_NORMS.values(), ids=MATCHING_PLAIN_NORMS)
def test_plain_layer_norm_in_other_orders(edits: list[tuple[str, str]]) -> None:
    program = assert_rewritten(edited(PLAIN, edits), set(), fuse_layer_norm, 1)
    (norm,) = program.graph
    assert norm.op_type == "LayerNormalization"
    assert [value.name for value in norm.inputs] == ["x", ONES]
    assert norm.attributes["epsilon"].as_float() == 0.25
    assert norm.attributes["axis"].as_int() == -1
    assert norm.outputs[0].name == "y"
    assert list(program.graph.initializers) == [ONES]
    ones = program.graph.initializers[ONES].const_value.numpy()
    assert ones.dtype == np.float32
    assert ones.tolist() == [1.0] * WIDTH


@pytest.mark.parametrize("edits", OTHER_PLAIN_NORMS.values(), ids=OTHER_PLAIN_NORMS)
def test_what_is_not_a_plain_layer_norm_stays(edits: list[tuple[str, str]]) -> None:
    program = assert_rewritten(edited(PLAIN, edits), VECTORS, fuse_layer_norm, 0)
    assert ONES not in program.graph.initializers


def test_plain_norms_share_one_scale() -> None:
    program = assert_rewritten(twice(PLAIN), set(), fuse_layer_norm, 2)
    assert [node.op_type for node in program.graph] == ["LayerNormalization"] * 2
    assert list(program.graph.initializers) == [ONES]
    assert len({node.inputs[1] for node in program.graph}) == 1


def test_norms_with_and_without_scales_beside_each_other() -> None:
    text = edited(NORM, [("=> (float[n, 4] y)", "=> (float[n, 4] y, float[n, 4] z)")])
    start, end = PLAIN.index("{\n") + 2, PLAIN.rindex("}")
    plain = re.sub(r"\b(?!x|epsilon|axes|keepdims)([a-z]+)\b", r"\g<1>2", PLAIN[start:end])
    plain = plain.replace("y2 = Add", "z = Add")
    program = assert_rewritten(f"{text.rstrip()[:-1]}{plain}}}", VECTORS, fuse_layer_norm, 2)
    scales = sorted(node.inputs[1].name for node in program.graph)
    assert scales == ["gamma", ONES]
