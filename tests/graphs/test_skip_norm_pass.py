"""The pass that puts a sum, its bias and a norm into one operator, on graphs made by hand."""

from __future__ import annotations

import pytest

for package in ("onnx", "onnx_ir", "onnxruntime"):
    pytest.importorskip(package)

from graphs.passes.matching import FUSED_DOMAIN  # noqa: E402
from graphs.passes.skip_norm import fuse_skip_norm  # noqa: E402
from tests.graphs.pass_helpers import assert_rewritten, edited, node_list, ops, parse  # noqa: E402

# A residual that goes on, and the output of a dense layer that is added to it.
NORM = """
g (float[n, 4] residual, float[n, 4] product, float[4] bias, float[4] scale, float[4] offset)
    => (float[n, 4] y, float[n, 4] after)
{
    biased = Add (product, bias)
    total = Add (biased, residual)
    y = LayerNormalization <axis = -1, epsilon = 1e-2> (total, scale, offset)
    after = Abs (total)
}
"""
WEIGHTS = {"bias", "scale", "offset"}
UNUSED_SUM = [("    after = Abs (total)\n", "    after = Abs (residual)\n")]
NO_BIAS = [("    biased = Add (product, bias)\n", ""), ("(biased, residual)", "(product, residual)")]
NO_OFFSET = [("(total, scale, offset)", "(total, scale)")]
MATCHES = {
    "as traced": ([], ["product", "residual", "scale", "offset", "bias"], 4),
    "the bias first": (
        [("(product, bias)", "(bias, product)")],
        ["product", "residual", "scale", "offset", "bias"],
        4,
    ),
    "the residual first": (
        [("(biased, residual)", "(residual, biased)")],
        ["product", "residual", "scale", "offset", "bias"],
        4,
    ),
    "a sum that nothing else reads": (
        UNUSED_SUM,
        ["product", "residual", "scale", "offset", "bias"],
        1,
    ),
    "no bias": (NO_BIAS, ["product", "residual", "scale", "offset"], 4),
    "no offset": (NO_OFFSET, ["product", "residual", "scale", None, "bias"], 4),
    "neither": ([*NO_BIAS, *NO_OFFSET], ["product", "residual", "scale"], 4),
    "the default axis": (
        [("axis = -1, ", "")],
        ["product", "residual", "scale", "offset", "bias"],
        4,
    ),
    "a biased product that something else reads too": (
        [("Abs (total)", "Add (total, biased)")],
        ["biased", "residual", "scale", "offset"],
        4,
    ),
}


@pytest.mark.parametrize(("edits", "inputs", "outputs"), MATCHES.values(), ids=MATCHES)
@pytest.mark.parametrize("rows", ["n", "n, 3"])
def test_a_norm_of_a_sum(
    edits: list[tuple[str, str]], inputs: list[str | None], outputs: int, rows: str
) -> None:
    text = edited(edited(NORM, edits), [("[n, 4]", f"[{rows}, 4]")])
    program = assert_rewritten(text, WEIGHTS, fuse_skip_norm, 1)
    (node,) = (one for one in program.graph if one.op_type == "SkipLayerNormalization")
    assert node.domain == FUSED_DOMAIN
    assert [value and value.name for value in node.inputs] == inputs
    assert node.attributes["epsilon"].as_float() == pytest.approx(1e-2)
    assert [value.name for value in node.outputs[:1]] == ["y"]
    assert len(node.outputs) == outputs
    assert all(value.name == "" for value in node.outputs[1:3])
    assert program.model.opset_imports[FUSED_DOMAIN] == 1
    assert "LayerNormalization" not in ops(program.graph)


def test_two_norms_one_after_another() -> None:
    more = [
        (
            "    after = Abs (total)\n",
            "    next = Add (total, y)\n    after = LayerNormalization "
            "<axis = -1> (next, scale, offset)\n",
        ),
    ]
    program = assert_rewritten(edited(NORM, more), WEIGHTS, fuse_skip_norm, 2)
    assert ops(program.graph) == {"SkipLayerNormalization": 2}
    first, second = program.graph
    assert second.inputs[0] is first.outputs[3]
    assert len(second.outputs) == 1


def test_a_sum_that_is_an_output_stays_beside_the_operator() -> None:
    edits = [("    after = Abs (total)\n", ""), ("total", "after")]
    program = assert_rewritten(edited(NORM, edits), WEIGHTS, fuse_skip_norm, 1)
    assert ops(program.graph) == {"Add": 2, "SkipLayerNormalization": 1}


OTHERS = {
    "no sum": [("Add (biased, residual)", "Mul (biased, residual)")],
    "a bias alone": [
        ("Add (biased, residual)", "Identity (biased)"),
        ("    biased", "    total"),
        ("    total = Identity (biased)\n", ""),
    ],
    "another norm": [
        ("LayerNormalization <axis = -1, epsilon = 1e-2> (total, scale, offset)", "Softmax (total)")
    ],
    "another axis": [
        ("axis = -1", "axis = 0"),
        ("float[4] scale, float[4] offset", "float[5, 4] scale, float[5, 4] offset"),
    ],
}


@pytest.mark.parametrize("edits", OTHERS.values(), ids=OTHERS)
def test_what_is_no_norm_of_a_sum_stays(edits: list[tuple[str, str]]) -> None:
    program = assert_rewritten(edited(NORM, edits), WEIGHTS, fuse_skip_norm, 0)
    assert FUSED_DOMAIN not in program.model.opset_imports


def test_a_second_time_there_is_nothing_to_do() -> None:
    program = parse(NORM, WEIGHTS)
    assert fuse_skip_norm(program) == 1
    nodes = node_list(program.graph)
    assert fuse_skip_norm(program) == 0
    assert node_list(program.graph) == nodes
