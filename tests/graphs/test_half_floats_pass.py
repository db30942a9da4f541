"""The passes that make a graph compute in 16 bits, on graphs made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

for package in ("onnx", "onnx_ir", "onnxruntime"):
    pytest.importorskip(package)

import onnx_ir as ir  # noqa: E402

from graphs.contract import ModelConfig  # noqa: E402
from graphs.passes.half_floats import narrow_to_bf16, narrow_to_fp16  # noqa: E402
from graphs.passes.matching import FUSED_DOMAIN  # noqa: E402
from graphs.program import Program  # noqa: E402
from tests.graphs.pass_helpers import edited, node_list, ops  # noqa: E402
from tests.graphs.quantized_helpers import KERNEL, TABLE, parse_named, run_stored  # noqa: E402

CONFIG = ModelConfig(6, 1, 1, 4, 4, 8)
# A lookup, a layer's product with its bias, a constant, both outputs, and a cache.
TEXT = """
g (int64[n] ids, float[6, 4] table, float[4, 5] kernel, float[5] bias, float[n, 5] past_key)
    => (float[n, 5] logits, float[n, 5] hidden_states, float[n, 5] kept)
<float half = {0.5}, int64 axis = {1}>
{
    rows = Gather <axis = 0> (table, ids)
    product = MatMul (rows, kernel)
    biased = Add (product, bias)
    hidden_states = Mul (biased, half)
    logits = Add (hidden_states, past_key)
    kept = Identity (past_key)
}
"""
WEIGHTS = {"table", "kernel", "bias"}
PASSES = {"fp16": (narrow_to_fp16, "float16"), "bf16": (narrow_to_bf16, "bfloat16")}


@pytest.fixture(params=PASSES)
def storage(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def parsed(text: str = TEXT, weights: set[str] = WEIGHTS, **names: str) -> Program:
    program = parse_named(text, weights, CONFIG, **names)
    program.graph.outputs[2].name = "present.0.key"  # no name of the text form
    return program


def kind(value: Any) -> str:
    return str(value.dtype.numpy())


def test_weights_constants_and_caches_become_narrow(storage: str) -> None:
    run, dtype = PASSES[storage]
    program = parsed()
    assert run(program) == 3
    found = {name: value for name, value in program.weights.items() if value.uses()}
    names = [f"{name}.{storage}" for name in (TABLE, KERNEL, "bias")]
    assert sorted(found) == sorted(names)
    assert {kind(value) for value in found.values()} == {dtype}
    # A layer's matrix is transposed, and nothing else is.
    assert [program.shape_of(name) for name in names] == [(6, 4), (5, 4), (5,)]
    (product,) = (node for node in program.graph if node.op_type == "FusedMatMul")
    assert product.domain == FUSED_DOMAIN
    assert product.inputs[1] is found[f"{KERNEL}.{storage}"]
    assert {name: a.as_int() for name, a in product.attributes.items()} == {"transB": 1}
    constants = {name: value.const_value for name, value in program.graph.initializers.items()}
    assert list(constants) == ["half"]  # the unused one is gone
    assert str(constants["half"].dtype.numpy()) == kind(program.graph.initializers["half"]) == dtype
    assert float(constants["half"].numpy()) == 0.5
    kinds = {value.name: kind(value) for value in [*program.graph.inputs, *program.graph.outputs]}
    assert {kinds[name] for name in ("past_key", "present.0.key")} == {dtype}
    assert kinds["ids"] == "int64"


def test_logits_and_hidden_states_leave_as_float32(storage: str) -> None:
    program = parsed()
    PASSES[storage][0](program)
    assert [value.name for value in program.graph.outputs] == [
        "logits",
        "hidden_states",
        "present.0.key",
    ]
    for value in list(program.graph.outputs)[:2]:
        cast = value.producer()
        assert cast is not None
        assert (cast.op_type, kind(value)) == ("Cast", "float32")
        assert cast.attributes["to"].as_int() == ir.DataType.FLOAT
        assert cast.inputs[0].name == f"narrow_{value.name}"
        assert [str(size) for size in value.shape] == ["n", "5"]
    # What follows inside reads the narrow one.
    (add,) = (node for node in program.graph if node.outputs[0].name == "narrow_logits")
    assert add.inputs[0].name == "narrow_hidden_states"


def test_the_numbers_are_those_of_numpy() -> None:
    program = parsed()
    assert narrow_to_fp16(program) == 3
    generator = np.random.default_rng(0)
    table, kernel, bias, past = (
        generator.integers(-8, 9, shape).astype(np.float16) / 4
        for shape in ((6, 4), (4, 5), (5,), (3, 5))
    )
    ids = np.array([5, 0, 3])
    stored = {f"{TABLE}.fp16": table, f"{KERNEL}.fp16": kernel.T.copy(), "bias.fp16": bias}
    found = run_stored(program, stored, {"ids": ids, "past_key": past})
    hidden = (table[ids].astype(np.float32) @ kernel + bias) / 2  # all of them are exact
    np.testing.assert_array_equal(found["hidden_states"], hidden)
    np.testing.assert_array_equal(found["logits"], hidden + past)
    np.testing.assert_array_equal(found["present.0.key"], past)
    assert [found[name].dtype for name in ("logits", "hidden_states", "present.0.key")] == [
        np.float32,
        np.float32,
        np.float16,
    ]


def test_weights_of_another_kind_and_unused_ones_stay(storage: str) -> None:
    edits = [("float[5] bias,", "float[5] bias, uint8[2] codes, float[3] unused,")]
    program = parsed(edited(TEXT, edits), WEIGHTS | {"codes", "unused"})
    assert PASSES[storage][0](program) == 3
    assert program.weights["codes"].dtype == ir.DataType.UINT8
    assert program.weights["unused"].dtype == ir.DataType.FLOAT
    assert not {name for name in program.weights if name.startswith(("codes.", "unused."))}


def test_a_projection_s_matrix_is_not_transposed(storage: str) -> None:
    program = parsed(kernel="embeddings/project_in/kernel")
    assert PASSES[storage][0](program) == 3
    assert program.shape_of(f"embeddings/project_in/kernel.{storage}") == (4, 5)
    assert ops(program.graph)["MatMul"] == 1
    assert ops(program.graph)["FusedMatMul"] == 0


def test_a_matrix_that_another_operator_reads_is_a_mistake(storage: str) -> None:
    program = parsed(edited(TEXT, [("MatMul", "Gemm")]))
    with pytest.raises(AssertionError, match=f"{KERNEL} is read by Gemm, which takes no transpose"):
        PASSES[storage][0](program)


def test_a_second_time_there_is_nothing_to_do(storage: str) -> None:
    program = parsed()
    assert PASSES[storage][0](program) == 3
    nodes = node_list(program.graph)
    for run, _ in PASSES.values():
        assert run(program) == 0
        assert node_list(program.graph) == nodes
