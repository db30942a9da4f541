"""Rewrite passes: they match what is traced, keep what it computes, and leave the rest alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
ort = pytest.importorskip("onnxruntime")

from graphs.contract import ModelConfig, Phase, graph_inputs, past_names, present_names  # noqa: E402
from graphs.passes import PASSES, expected_counts, rewrite  # noqa: E402
from graphs.passes.layer_norm import fuse_layer_norm  # noqa: E402
from graphs.passes.matching import remove_unused  # noqa: E402
from graphs.passes.tied_head import fuse_tied_head  # noqa: E402
from graphs.program import Program  # noqa: E402

CONFIG = ModelConfig(300, 2, 4, 32, 64, 64)
EMBEDDING = "embeddings/token_embedding/embeddings"
Arrays = dict[str, np.ndarray]


def run_model(model: Any, feeds: Arrays) -> Arrays:
    """What ONNX Runtime computes with no rewriting of its own."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    wanted = {value.name for value in session.get_inputs()}
    values = session.run(names, {name: feeds[name] for name in feeds if name in wanted})
    return dict(zip(names, values, strict=True))


def assert_same(before: Arrays, after: Arrays, tolerance: float = 1e-5) -> None:
    assert list(before) == list(after)
    for name, value in before.items():
        assert value.shape == after[name].shape, name
        assert np.abs(value - after[name]).max() <= tolerance, name


def ops(graph: Any) -> Counter[str]:
    return Counter(node.op_type for node in graph)


# === The traced model ===


@dataclass
class Traced:
    """A phase's graph before and after the passes, and what they counted."""

    program: Program
    before: Any
    after: Any
    ops_before: Counter[str]
    counts: dict[str, int]


@pytest.fixture(scope="module")
def traced() -> dict[Phase, Traced]:
    """The toy model traced as an export traces it."""
    for package in ("tensorflow", "keras", "tf2onnx"):
        pytest.importorskip(package)
    from exporter.tracing import build_weightless_backbone, trace

    backbone = build_weightless_backbone(CONFIG)
    result = {}
    for phase in Phase:
        program = trace(backbone, phase)
        before, ops_before = ir.to_proto(program.model), ops(program.graph)
        counts = rewrite(program)
        result[phase] = Traced(program, before, ir.to_proto(program.model), ops_before, counts)
    return result


def random_weights(program: Program) -> Arrays:
    generator = np.random.default_rng(0)
    weights = {}
    for name, value in program.weights.items():
        shape = tuple(int(d) for d in value.shape)
        values = 0.3 * generator.standard_normal(shape) + name.endswith("gamma")
        weights[name] = values.astype(np.float32)
    return weights


def with_weights(model: Any, weights: Arrays) -> Any:
    """A copy of a traced model whose weights have values."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    used = {name for node in copy.graph.node for name in node.input}
    copy.graph.initializer.extend(
        onnx.numpy_helper.from_array(values, name) for name, values in weights.items() if name in used
    )
    return copy


def feeds(phase: Phase, past: list[int], new: list[int], capacity: int = 12) -> Arrays:
    """Inputs with a cache full of noise; rows have pasts of different lengths."""
    generator = np.random.default_rng(1)
    sizes = {"batch": len(past), "sequence": max(new), "capacity": capacity}
    values: Arrays = {}
    for spec in graph_inputs(CONFIG, phase):
        shape = tuple(sizes[d] if isinstance(d, str) else d for d in spec.shape)
        values[spec.name] = generator.standard_normal(shape).astype(spec.dtype)
    values["input_ids"] = generator.integers(0, 300, (len(past), max(new)))
    values["past_lengths"] = np.array(past, np.int32)
    values["new_lengths"] = np.array(new, np.int32)
    return values


@pytest.mark.parametrize("phase", Phase)
def test_every_pass_matches_as_often_as_an_opt_decoder_has_it(
    traced: dict[Phase, Traced], phase: Phase
) -> None:
    found = traced[phase]
    assert found.counts == expected_counts(2) == {"fuse_layer_norm": 5, "fuse_tied_head": 1}
    after = ops(found.program.graph)
    assert after["LayerNormalization"] == 5
    assert after["Gemm"] == found.ops_before["Gemm"] + 1
    assert found.ops_before["LayerNormalization"] == 0
    for traces_of_a_norm in ("ReduceMean", "Reciprocal", "Sqrt", "Neg"):
        assert found.ops_before[traces_of_a_norm] >= 5
        assert after[traces_of_a_norm] == 0
    assert sum(after.values()) <= sum(found.ops_before.values()) - 5 * 10


@pytest.mark.parametrize("phase", Phase)
def test_the_head_reads_the_embedding_as_it_is_stored(
    traced: dict[Phase, Traced], phase: Phase
) -> None:
    program = traced[phase].program
    embedding = program.weights[EMBEDDING]
    users = sorted(node.op_type for node, _ in embedding.uses())
    assert users == ["Gather", "Gemm"]
    (head,) = (node for node, _ in embedding.uses() if node.op_type == "Gemm")
    assert head.inputs[1] is embedding
    assert head.attributes["transB"].as_int() == 1


@pytest.mark.parametrize("phase", Phase)
def test_norms_have_the_weights_and_epsilon_of_the_model(
    traced: dict[Phase, Traced], phase: Phase
) -> None:
    norms = [n for n in traced[phase].program.graph if n.op_type == "LayerNormalization"]
    names = [
        *(
            f"transformer_layer_{i}/{norm}_norm"
            for i in (0, 1)
            for norm in ("attention", "feed_forward")
        ),
        "layer_norm",
    ]
    found = {(norm.inputs[1].name, norm.inputs[2].name) for norm in norms}
    assert found == {(f"{name}/gamma", f"{name}/beta") for name in names}
    for norm in norms:
        assert norm.attributes["epsilon"].as_float() == pytest.approx(1e-5)
        assert norm.attributes["axis"].as_int() == -1


CALLS = [
    (Phase.PREFILL, [0, 0], [5, 3]),
    (Phase.PREFILL, [4, 0, 7], [1, 5, 2]),
    (Phase.PREFILL, [0], [1]),
    (Phase.DECODE, [3, 0, 11], [1, 1, 1]),
]


@pytest.mark.parametrize(("phase", "past", "new"), CALLS)
def test_passes_keep_what_the_graph_computes(
    traced: dict[Phase, Traced], phase: Phase, past: list[int], new: list[int]
) -> None:
    found, inputs = traced[phase], feeds(phase, past, new)
    weights = random_weights(found.program)
    before = run_model(with_weights(found.before, weights), inputs)
    after = run_model(with_weights(found.after, weights), inputs)
    assert before["logits"].std() > 0.5
    assert_same(before, after)


@pytest.mark.parametrize(("phase", "past", "new"), CALLS)
def test_new_tokens_are_written_where_the_past_ends(
    traced: dict[Phase, Traced], phase: Phase, past: list[int], new: list[int]
) -> None:
    found, inputs = traced[phase], feeds(phase, past, new)
    outputs = run_model(with_weights(found.after, random_weights(found.program)), inputs)
    for layer in range(2):
        for old, now in zip(past_names(layer), present_names(layer), strict=True):
            for row, (begin, count) in enumerate(zip(past, new, strict=True)):
                assert np.array_equal(outputs[now][row, :, :begin], inputs[old][row, :, :begin])
                written = outputs[now][row, :, begin : begin + count]
                assert (written != inputs[old][row, :, begin : begin + count]).all()


@pytest.mark.parametrize("phase", Phase)
def test_a_second_time_there_is_nothing_to_do(traced: dict[Phase, Traced], phase: Phase) -> None:
    program = Program(ir.from_proto(traced[phase].after), {})
    before = [(node.op_type, node.outputs[0].name) for node in program.graph]
    assert rewrite(program) == {"fuse_layer_norm": 0, "fuse_tied_head": 0}
    assert [(node.op_type, node.outputs[0].name) for node in program.graph] == before


def test_counts_are_named_after_the_passes() -> None:
    assert list(expected_counts(12)) == [run.__name__ for run in PASSES]
    assert expected_counts(12) == {"fuse_layer_norm": 25, "fuse_tied_head": 1}


# === Graphs made by hand ===


def parse(text: str, weights: set[str]) -> Program:
    """A program from ONNX's text form; its weights stay inputs, so that it can be run."""
    model = ir.from_proto(onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 18]>\n{text}'))
    return Program(model, {value.name: value for value in model.graph.inputs if value.name in weights})


def assert_rewritten(
    text: str, weights: set[str], run: Callable[[Program], int], expected: int
) -> Program:
    """The pass matches as often as expected, and the graph computes what it did.

    Where it does not match, the graph has the nodes that it had.
    """
    program = parse(text, weights)
    remove_unused(program.graph)  # what an edit of the text has cut off
    nodes = [(node.op_type, node.outputs[0].name) for node in program.graph]
    generator = np.random.default_rng(0)
    inputs = {
        value.name: generator.standard_normal(
            tuple(d if isinstance(d, int) else 5 for d in value.shape)
        ).astype(np.float32)
        for value in program.graph.inputs
    }
    before = run_model(ir.to_proto(program.model), inputs)
    count = run(program)
    assert_same(before, run_model(ir.to_proto(program.model), inputs))
    assert count == expected
    if not expected:
        assert [(node.op_type, node.outputs[0].name) for node in program.graph] == nodes
    return program


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

OTHER_NORMS = {
    "another axis": [("axes = {-1}", "axes = {0}")],
    "two axes": [("int64[1] axes = {-1}", "int64[2] axes = {0, 1}")],
    "axes from outside": [
        (", int64[1] axes = {-1}", ""),
        ("float[4] beta)", "float[4] beta, float[1] zero)"),
        ("    mean =", "none = Cast <to = 7> (zero)\naxes = Sub (none, none)\n    mean ="),
    ],
    "no axes": [("ReduceMean <keepdims = 1> (x, axes)", "ReduceMean <keepdims = 1> (x)")],
    "another axis for the variance": [
        ("axes = {-1}>", "axes = {-1}, int64[1] rows = {0}>"),
        ("(square, axes)", "(square, rows)"),
    ],
    "mean without its dimension": [
        ("float[n, 4]", "float[4, 4]"),
        ("mean = ReduceMean <keepdims = 1>", "mean = ReduceMean <keepdims = 0>"),
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
    "two scales": [
        ("    scaled =", "second = Mul (scale, scale)\n    scaled ="),
        ("scaled = Mul (x, scale)", "scaled = Mul (x, second)"),
    ],
    "something else scaled": [
        ("    mean =", "other = Abs (x)\n    mean ="),
        ("scaled = Mul (x, scale)", "scaled = Mul (other, scale)"),
    ],
    "subtracted at the end": [("y = Add (scaled, shift)", "y = Sub (scaled, shift)")],
    "no epsilon": [("deviation = Sqrt (total)", "deviation = Sqrt (variance)")],
}


def edited(text: str, edits: list[tuple[str, str]]) -> str:
    for old, new in edits:
        assert old in text, old
        text = text.replace(old, new)
    return text


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


def test_two_norms_in_a_row() -> None:
    start, end = NORM.index("{\n") + 2, NORM.rindex("}")
    first = NORM[start:end].replace("y = Add", "x2 = Add")
    second = re.sub(r"\b(?!gamma|beta|epsilon|axes|keepdims)([a-z]+)\b", r"\g<1>2", NORM[start:end])
    text = NORM[:start] + first + second.replace("y2 = Add", "y = Add") + NORM[end:]
    program = assert_rewritten(text, VECTORS, fuse_layer_norm, 2)
    assert [node.op_type for node in program.graph] == ["LayerNormalization"] * 2


# === Tied head ===

HEAD = """
g (float[n, 4] x, float[6, 4] w) => (float[n, 6] y)
{
    turned = Transpose <perm = [1, 0]> (w)
    y = MatMul (x, turned)
}
"""


@pytest.mark.parametrize("edits", [[], [(" <perm = [1, 0]>", "")]], ids=["perm", "default perm"])
def test_a_head_over_a_transposed_weight(edits: list[tuple[str, str]]) -> None:
    program = assert_rewritten(edited(HEAD, edits), {"w"}, fuse_tied_head, 1)
    (gemm,) = program.graph
    assert (gemm.op_type, gemm.attributes["transB"].as_int()) == ("Gemm", 1)
    assert [value.name for value in gemm.inputs] == ["x", "w"]


def test_two_products_with_one_weight() -> None:
    text = edited(
        HEAD,
        [
            ("=> (float[n, 6] y)", "=> (float[n, 6] y, float[n, 6] z)"),
            ("    y =", "    other = Abs (x)\n    z = MatMul (other, turned)\n    y ="),
        ],
    )
    program = assert_rewritten(text, {"w"}, fuse_tied_head, 2)
    assert ops(program.graph) == {"Gemm": 2, "Abs": 1}


def test_a_transpose_that_others_use_stays() -> None:
    text = edited(HEAD, [("=> (float[n, 6] y)", "=> (float[n, 6] y, float[4, 6] turned)")])
    program = assert_rewritten(text, {"w"}, fuse_tied_head, 1)
    assert ops(program.graph) == {"Gemm": 1, "Transpose": 1}


OTHER_HEADS = {
    "no transpose": [("float[6, 4] w", "float[4, 6] w"), ("Transpose <perm = [1, 0]>", "Identity")],
    "weight used as it is": [
        ("float[6, 4] w", "float[4, 6] w"),
        ("    turned = Transpose <perm = [1, 0]> (w)\n", ""),
        ("turned", "w"),
    ],
    "a permutation that changes nothing": [("float[6, 4] w", "float[4, 6] w"), ("[1, 0]", "[0, 1]")],
    "the weight on the left": [
        ("[n, 4] x", "[6, 3] x"),
        ("[n, 6] y", "[4, 3] y"),
        ("MatMul (x, turned)", "MatMul (turned, x)"),
    ],
    "not a product": [("float[n, 4] x", "float[4, 6] x"), ("MatMul", "Add"), ("[n, 6] y", "[4, 6] y")],
    "a computed matrix": [
        ("    turned", "    other = Abs (w)\n    turned"),
        ("[1, 0]> (w)", "[1, 0]> (other)"),
    ],
    "rows in three dimensions": [("[n, 4] x", "[n, 3, 4] x"), ("[n, 6] y", "[n, 3, 6] y")],
    "a stack of matrices": [
        ("[n, 4] x, float[6, 4] w", "[2, 3, 4] x, float[2, 6, 4] w"),
        ("[n, 6] y", "[2, 3, 6] y"),
        ("[1, 0]", "[0, 2, 1]"),
    ],
    "a stack turned around": [
        ("[n, 4] x, float[6, 4] w", "[2, 3, 4] x, float[6, 4, 2] w"),
        ("[n, 6] y", "[2, 3, 6] y"),
        (" <perm = [1, 0]>", ""),
    ],
}


@pytest.mark.parametrize("edits", OTHER_HEADS.values(), ids=OTHER_HEADS)
def test_what_is_not_a_head_stays(edits: list[tuple[str, str]]) -> None:
    assert_rewritten(edited(HEAD, edits), {"w"}, fuse_tied_head, 0)


def test_a_transposed_activation_stays() -> None:
    assert_rewritten(HEAD, set(), fuse_tied_head, 0)


# === Helpers ===


def test_remove_unused_keeps_what_leads_to_an_output() -> None:
    text = """
g (float[n] x) => (float[n] y)
<float one = {1.0}, float unused = {2.0}, float indirect = {3.0}>
{
    y = Add (x, one)
    a = Mul (x, indirect)
    b = Neg (a)
}
"""
    program = parse(text, set())
    remove_unused(program.graph)
    assert [node.op_type for node in program.graph] == ["Add"]
    assert list(program.graph.initializers) == ["one"]
