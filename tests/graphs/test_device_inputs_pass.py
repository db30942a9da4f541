"""The pass that takes what follows from lengths as inputs, on traced graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

for package in ("onnx", "onnx_ir", "onnxruntime", "tensorflow", "keras", "tf2onnx"):
    pytest.importorskip(package)

import onnx_ir as ir  # noqa: E402

from graphs.contract import ModelConfig, Phase, Revision, graph_inputs  # noqa: E402
from graphs.passes import rewrite  # noqa: E402
from graphs.passes.attention import fuse_attention  # noqa: E402
from graphs.passes.device_inputs import take_positions  # noqa: E402
from graphs.passes.head import fuse_head  # noqa: E402
from graphs.passes.layer_norm import fuse_layer_norm  # noqa: E402
from graphs.passes.token_layout import keep_rows  # noqa: E402
from graphs.program import Program  # noqa: E402
from tests.graphs.cuda_helpers import Runner, device_inputs  # noqa: E402
from tests.graphs.pass_helpers import (  # noqa: E402
    TracedModel,
    assert_same,
    node_list,
    ops,
    other_hidden_states,
    readable,
    trace_model,
    with_weights,
)

CONFIG = ModelConfig(300, 1, 4, 32, 64, 64)
MODELS = {
    "opt": CONFIG,
    "opt-350m": replace(CONFIG, embedding_dim=16, norm_first=False, final_norm=False),
    "two layers": replace(CONFIG, num_layers=2),
}
CALLS = [
    ([0], [1]),
    ([0, 0, 0], [5, 3, 0]),
    ([4], [5]),
    ([10], [2]),
    ([3, 0, 11], [1, 1, 1]),
    ([3, 7], [0, 1]),
]
# What computes with lengths and shapes.
HOST_OPERATORS = {
    *("And", "Concat", "Equal", "Expand", "Less", "LessOrEqual", "Max", "Min", "Not", "Range"),
    *("ReduceMax", "ReduceSum", "Shape", "Slice", "Squeeze", "Sub", "Unsqueeze", "Where", "Cast"),
}

Trace = Callable[[str], TracedModel]


@pytest.fixture(scope="module")
def traced() -> Trace:
    """Traces a model once."""
    found: dict[str, TracedModel] = {}

    def model(name: str) -> TracedModel:
        if name not in found:
            found[name] = trace_model(MODELS[name], Phase.PREFILL)
        return found[name]

    return model


def in_rows(model: TracedModel) -> Program:
    program = model.program()
    for pass_before in (fuse_layer_norm, fuse_head, fuse_attention, keep_rows):
        pass_before(program)
    return program


@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_left_that_computes_with_lengths(traced: Trace, name: str) -> None:
    program = in_rows(traced(name))
    layers = program.config.num_layers
    assert {"Shape", "Add", "Cast", "Unsqueeze"} <= set(ops(program.graph))
    assert take_positions(program) == layers
    left = ops(program.graph)
    assert not HOST_OPERATORS & set(left)
    assert (left["Gather"], left["Reshape"], left["Identity"]) == (3, 1, 1)
    found = [value.name for value in program.graph.inputs]
    wanted = graph_inputs(program.config, Phase.PREFILL, revision=Revision.DEVICE)
    assert found == [spec.name for spec in wanted]
    for value, spec in zip(program.graph.inputs, wanted, strict=True):
        assert str(value.dtype.numpy()) == spec.dtype
        assert [d if isinstance(d, int) else str(d.value) for d in value.shape] == list(spec.shape)
    inputs = {value.name: value for value in program.graph.inputs}
    for node in program.graph:
        if node.op_type == "GroupQueryAttention":
            assert node.inputs[5] is inputs["last_positions"]
            assert node.inputs[6] is inputs["total_length"]
    # Nobody reads the temperatures yet, and nobody the lengths any more.
    unused = [name for name, value in inputs.items() if not value.uses()]
    assert unused == ["inverse_temperatures"]
    assert not {"past_lengths", "new_lengths"} & set(inputs)


@pytest.mark.parametrize(("past", "new"), CALLS)
@pytest.mark.parametrize("name", MODELS)
def test_the_graph_computes_what_it_did(
    traced: Trace, name: str, past: list[int], new: list[int]
) -> None:
    model = traced(name)
    before, after = in_rows(model), in_rows(model)
    take_positions(after)
    weights = model.random_weights()
    host, device = device_inputs(model.config, past, new, 12, np.float32)
    found = [
        readable(Runner(with_weights(ir.to_proto(program.model), weights))(inputs), past, new)
        for program, inputs in ((before, host), (after, device))
    ]
    assert found[0]["logits"].std() > 0.5
    assert_same(*found, tolerance=1e-6)


def other_attention(program: Program) -> None:
    next(n for n in program.graph if n.op_type == "GroupQueryAttention").op_type = "Other"


def unknown_positions(program: Program) -> None:
    del program.weights["embeddings/position_embedding/embeddings"]


@pytest.mark.parametrize("change", [other_attention, unknown_positions, other_hidden_states])
def test_a_graph_of_another_kind_stays_as_it_is(
    traced: Trace, change: Callable[[Program], None]
) -> None:
    program = in_rows(traced("opt"))
    change(program)
    nodes = node_list(program.graph)
    inputs = [value.name for value in program.graph.inputs]
    assert take_positions(program) == 0
    assert node_list(program.graph) == nodes
    assert [value.name for value in program.graph.inputs] == inputs


def test_a_graph_without_fused_attention_stays_as_it_is(traced: Trace) -> None:
    program = traced("opt").program()
    rewrite(program, "portable")
    nodes = node_list(program.graph)
    assert take_positions(program) == 0
    assert node_list(program.graph) == nodes


def test_a_second_time_there_is_nothing_to_do(traced: Trace) -> None:
    program = in_rows(traced("two layers"))
    assert take_positions(program) == 2
    nodes = node_list(program.graph)
    assert take_positions(program) == 0
    assert node_list(program.graph) == nodes
