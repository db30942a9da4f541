"""What passes look for: a value that something else reads, too, is not theirs to replace."""

from __future__ import annotations

import pytest

pytest.importorskip("onnx_ir")

import onnx
import onnx_ir as ir

from graphs.passes.matching import only_user

HEAD = '<ir_version: 10, opset_import: ["" : 20]> g '


def value_of(text, name="y"):
    graph = ir.from_proto(onnx.parser.parse_model(HEAD + text)).graph
    return next(v for node in graph for v in node.outputs if v.name == name), graph


ONE = "(float[2] x) => (float[2] z) { y = Relu(x) z = Add(y, x) }"


def test_the_only_user_is_found():
    value, graph = value_of(ONE)
    assert only_user(value, "Add") is graph[1]
    assert only_user(value, "Mul") is None


@pytest.mark.parametrize(
    "text",
    [
        "(float[2] x) => (float[2] z, float[2] w) { y = Relu(x) z = Add(y, x) w = Mul(y, x) }",
        "(float[2] x) => (float[2] z, float[2] w) { y = Relu(x) w = Mul(y, x) z = Add(y, x) }",
        "(float[2] x) => (float[2] z, float[2] w) { y = Relu(x) z = Add(y, x) w = Add(y, x) }",
        "(float[2] x) => (float[2] z) { y = Relu(x) z = Add(y, y) }",
        "(float[2] x) => (float[2] z, float[2] y) { y = Relu(x) z = Add(y, x) }",
        "(float[2] x) => (float[2] x2) { y = Relu(x) x2 = Relu(x) }",
    ],
    ids=["another after", "another before", "one of its kind", "twice", "who runs it", "nobody"],
)
def test_a_value_with_a_second_reader_has_no_only_user(text):
    assert only_user(value_of(text)[0], "Add") is None
