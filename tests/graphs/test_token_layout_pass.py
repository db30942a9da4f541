"""The pass that keeps tokens laid out by rows, on traced graphs with their attention fused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

for package in ("onnx", "onnx_ir", "onnxruntime", "tensorflow", "keras", "tf2onnx"):
    pytest.importorskip(package)

import onnx  # noqa: E402
import onnx_ir as ir  # noqa: E402

from graphs.contract import ModelConfig, Phase, graph_outputs  # noqa: E402
from graphs.passes import rewrite  # noqa: E402
from graphs.passes.attention import fuse_attention  # noqa: E402
from graphs.passes.head import fuse_head  # noqa: E402
from graphs.passes.layer_norm import fuse_layer_norm  # noqa: E402
from graphs.passes.token_layout import keep_rows  # noqa: E402
from graphs.program import Program  # noqa: E402
from tests.graphs.pass_helpers import (  # noqa: E402
    Arrays,
    TracedModel,
    assert_same,
    contract_inputs,
    node_list,
    ops,
    other_hidden_states,
    readable,
    run_model,
    trace_model,
    with_weights,
)

CONFIG = ModelConfig(300, 2, 4, 32, 64, 64)
MODELS = {
    "opt": CONFIG,
    "opt-350m": replace(CONFIG, embedding_dim=16, norm_first=False, final_norm=False),
}
CALLS = [
    (Phase.PREFILL, [0, 0, 0], [5, 3, 0]),
    (Phase.PREFILL, [4], [5]),
    (Phase.PREFILL, [3, 0, 11], [1, 1, 1]),  # one graph for both phases
    (Phase.DECODE, [3, 0, 11], [1, 1, 1]),
]

Trace = Callable[[str, Phase], TracedModel]


@pytest.fixture(scope="module")
def traced() -> Trace:
    """Traces a model's phase once."""
    found: dict[tuple[str, Phase], TracedModel] = {}

    def model(name: str, phase: Phase) -> TracedModel:
        if (name, phase) not in found:
            found[name, phase] = trace_model(MODELS[name], phase)
        return found[name, phase]

    return model


def fused(model: TracedModel) -> Program:
    program = model.program()
    for pass_before in (fuse_layer_norm, fuse_head, fuse_attention):
        pass_before(program)
    return program


def run(model: TracedModel, program: Program, inputs: Arrays) -> Arrays:
    bound = with_weights(ir.to_proto(program.model), model.random_weights())
    onnx.checker.check_model(bound)
    return run_model(bound, inputs)


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("name", MODELS)
def test_the_reshapes_around_attention_go(traced: Trace, name: str, phase: Phase) -> None:
    program = fused(traced(name, phase))
    before = ops(program.graph)
    assert keep_rows(program) == 2
    gone = before - ops(program.graph)
    # Two around each attention, the tokens' and the positions'; one comes, which is for the head alone.
    assert gone["Reshape"] == 2 * 2 + 2 - 1
    assert not ops(program.graph) - before
    for node in program.graph:
        if node.op_type == "GroupQueryAttention":
            assert node.inputs[0].producer().op_type in ("Add", "MatMul")
            users = {use.node.op_type for use in node.outputs[0].uses()}
            assert users == {"MatMul"}


@pytest.mark.parametrize(("phase", "past", "new"), CALLS)
@pytest.mark.parametrize("name", MODELS)
def test_the_graph_computes_what_it_did(
    traced: Trace, name: str, phase: Phase, past: list[int], new: list[int]
) -> None:
    model = traced(name, phase)
    inputs = contract_inputs(CONFIG, phase, past, new)
    flat, rows = fused(model), fused(model)
    assert keep_rows(rows) == 2
    before, after = run(model, flat, inputs), run(model, rows, inputs)
    assert before["logits"].std() > 0.5
    assert_same(readable(before, past, new), readable(after, past, new))
    sizes = {"batch": len(past), "sequence": max(new), "capacity": 12, "outputs": len(past)}
    for spec in graph_outputs(model.config, phase):
        shape = tuple(sizes[d] if isinstance(d, str) else d for d in spec.shape)
        assert after[spec.name].shape == shape, spec.name


def unfused_attention(program: Program) -> None:
    node = next(node for node in program.graph if node.op_type == "GroupQueryAttention")
    node.op_type = "OtherAttention"


def unknown_tokens(program: Program) -> None:
    del program.weights["embeddings/token_embedding/embeddings"]


def computed_positions(program: Program) -> None:
    table = program.weights["embeddings/position_embedding/embeddings"]
    (gather,) = (use.node for use in table.uses())
    other = ir.node("Abs", [table])
    program.graph.insert_before(gather, [other])
    gather.replace_input_with(0, other.outputs[0])


@pytest.mark.parametrize(
    "change", [unfused_attention, unknown_tokens, computed_positions, other_hidden_states]
)
def test_a_graph_of_another_kind_stays_as_it_is(
    traced: Trace, change: Callable[[Program], None]
) -> None:
    """All or nothing: tokens that are flat in places would not fit those that are not."""
    program = fused(traced("opt", Phase.PREFILL))
    change(program)
    nodes = node_list(program.graph)
    assert keep_rows(program) == 0
    assert node_list(program.graph) == nodes


def test_a_second_time_there_is_nothing_to_do(traced: Trace) -> None:
    program = fused(traced("opt", Phase.PREFILL))
    keep_rows(program)
    nodes = node_list(program.graph)
    assert keep_rows(program) == 0
    assert node_list(program.graph) == nodes


def test_a_graph_without_fused_attention_stays_as_it_is(traced: Trace) -> None:
    program = traced("opt", Phase.DECODE).program()
    rewrite(program, "portable")
    nodes = node_list(program.graph)
    assert keep_rows(program) == 0
    assert node_list(program.graph) == nodes
    assert ops(program.graph)["Reshape"] > 4
