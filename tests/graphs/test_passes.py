"""The rewrite passes on traced models: they match what is traced and keep what it computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

for package in ("onnx", "onnx_ir", "onnxruntime"):
    pytest.importorskip(package)

import onnx_ir as ir  # noqa: E402

from graphs.contract import (  # noqa: E402
    ModelConfig,
    Phase,
    graph_outputs,
    past_names,
    present_names,
)
from graphs.passes import expected_counts, passes, rewrite  # noqa: E402
from graphs.passes.layer_norm import ONES  # noqa: E402
from graphs.passes.matching import FUSED_DOMAIN, remove_unused  # noqa: E402
from graphs.program import Program  # noqa: E402
from tests.graphs.pass_helpers import (  # noqa: E402
    Arrays,
    TracedModel,
    assert_same,
    contract_inputs,
    node_list,
    ops,
    parse,
    readable,
    run_model,
    trace_model,
    with_views,
    with_weights,
)

CONFIG = ModelConfig(300, 2, 4, 32, 64, 64)
MODELS = {
    "opt": CONFIG,
    "opt-350m": replace(CONFIG, embedding_dim=16, norm_first=False, final_norm=False),
    "galactica": replace(CONFIG, activation="gelu", use_bias=False, norm_affine=False),
    # What no published model has, in as many ways as one model can.
    "other": replace(
        CONFIG,
        activation="gelu_tanh",
        norm_first=False,
        use_bias=False,
        embedding_dim=48,
        tied_head=False,
    ),
}
TOKENS = "embeddings/token_embedding/embeddings"


TARGETS = ("portable", "cpu")  # in float32; `test_cuda_passes` has the other one


@dataclass
class Traced:
    """A phase's graph, and what the passes of each target made of it and counted."""

    model: TracedModel
    programs: dict[str, Program]
    counts: dict[str, dict[str, int]]

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @property
    def program(self) -> Program:
        """The portable one."""
        return self.programs["portable"]

    @property
    def ops_before(self) -> Any:
        return ops(self.model.program().graph)

    def run(self, inputs: Arrays, target: str | None = None) -> Arrays:
        """What a target's graph computes, or the one that was traced."""
        weights = self.model.random_weights()
        if target is None:
            return run_model(with_weights(self.model.model, weights), inputs)
        program = self.programs[target]
        model = with_weights(ir.to_proto(program.model), with_views(program, weights))
        return run_model(model, inputs)


def nodes_of(program: Program, op_type: str) -> list[Any]:
    return [node for node in program.graph if node.op_type == op_type]


Trace = Callable[[str, Phase], Traced]


@pytest.fixture(scope="module")
def traced() -> Trace:
    """A model traced as an export traces it, each once."""
    for package in ("tensorflow", "keras", "tf2onnx"):
        pytest.importorskip(package)
    found: dict[tuple[str, Phase], Traced] = {}

    def traced_model(name: str, phase: Phase) -> Traced:
        if (name, phase) not in found:
            model = trace_model(MODELS[name], phase)
            programs = {target: model.program() for target in TARGETS}
            counts = {target: rewrite(program, target) for target, program in programs.items()}
            found[name, phase] = Traced(model, programs, counts)
        return found[name, phase]

    return traced_model


# === What is matched ===

COUNTS = {"opt": 5, "opt-350m": 4, "galactica": 5, "other": 5}


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("name", MODELS)
def test_every_pass_matches_as_often_as_an_opt_decoder_has_it(
    traced: Trace, name: str, phase: Phase
) -> None:
    found, norms = traced(name, phase), COUNTS[name]
    assert found.counts["portable"] == {"fuse_layer_norm": norms, "fuse_head": 1}
    assert found.counts["portable"] == expected_counts(found.config)
    after = ops(found.program.graph)
    assert {node.domain for node in found.program.graph} == {""}
    assert after["LayerNormalization"] == norms
    assert after["Gemm"] == found.ops_before["Gemm"] + 1
    assert found.ops_before["LayerNormalization"] == 0
    for traces_of_a_norm in ("ReduceMean", "Reciprocal", "Sqrt", "Neg"):
        assert found.ops_before[traces_of_a_norm] >= norms
        assert after[traces_of_a_norm] == 0
    saved = 10 if found.config.norm_affine else 8  # nodes of a norm, less the one that stays
    assert sum(after.values()) <= sum(found.ops_before.values()) - norms * saved


@pytest.mark.parametrize("phase", Phase)
def test_the_head_reads_the_embedding_as_it_is_stored(traced: Trace, phase: Phase) -> None:
    embedding = traced("opt", phase).program.weights[TOKENS]
    users = sorted(node.op_type for node, _ in embedding.uses())
    assert users == ["Gather", "Gemm"]
    (head,) = (node for node, _ in embedding.uses() if node.op_type == "Gemm")
    assert head.inputs[1] is embedding
    assert head.attributes["transB"].as_int() == 1


@pytest.mark.parametrize("phase", Phase)
def test_the_embedding_reads_a_tied_table_through_a_view(traced: Trace, phase: Phase) -> None:
    program = traced("opt", phase).programs["cpu"]
    view = f"{TOKENS}.rows"
    assert program.views == {view: TOKENS}
    table, rows = program.weights[TOKENS], program.weights[view]
    assert (rows.shape, rows.dtype) == (table.shape, table.dtype)
    assert [user.op_type for user, _ in table.uses()] == ["Gemm"]
    assert [user.op_type for user, _ in rows.uses()] == ["Gather"]
    assert traced("opt", phase).program.views == {}
    assert traced("other", phase).programs["cpu"].views == {}  # a head of its own


@pytest.mark.parametrize("phase", Phase)
def test_a_head_of_its_own_is_read_as_it_is_stored_too(traced: Trace, phase: Phase) -> None:
    weights = traced("other", phase).program.weights
    ((gather, _),) = weights[TOKENS].uses()
    ((head, _),) = weights["head/embeddings"].uses()
    assert gather.op_type == "Gather"
    assert (head.op_type, head.attributes["transB"].as_int()) == ("Gemm", 1)
    assert head.inputs[1] is weights["head/embeddings"]
    assert head.outputs[0].name == "logits"


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("name", ["opt", "opt-350m", "other"])
def test_norms_have_the_weights_and_epsilon_of_the_model(
    traced: Trace, name: str, phase: Phase
) -> None:
    found = traced(name, phase)
    names = [
        f"transformer_layer_{i}/{norm}_norm" for i in (0, 1) for norm in ("attention", "feed_forward")
    ]
    names += ["layer_norm"] * found.config.final_norm
    norms = nodes_of(found.program, "LayerNormalization")
    pairs = {(norm.inputs[1].name, norm.inputs[2].name) for norm in norms}
    assert pairs == {(f"{name}/gamma", f"{name}/beta") for name in names}
    for norm in norms:
        assert norm.attributes["epsilon"].as_float() == pytest.approx(1e-5)
        assert norm.attributes["axis"].as_int() == -1


@pytest.mark.parametrize("phase", Phase)
def test_norms_without_scales_share_a_constant(traced: Trace, phase: Phase) -> None:
    found = traced("galactica", phase)
    norms = nodes_of(found.program, "LayerNormalization")
    assert [[value.name for value in norm.inputs[1:]] for norm in norms] == [[ONES]] * 5
    assert {norm.attributes["epsilon"].as_float() for norm in norms} == {np.float32(1e-5)}
    ones = found.program.graph.initializers[ONES].const_value.numpy()
    assert ones.shape == (32,)
    assert (ones == 1).all()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("name", MODELS)
def test_a_second_time_there_is_nothing_to_do(
    traced: Trace, name: str, phase: Phase, target: str
) -> None:
    again = ir.from_proto(ir.to_proto(traced(name, phase).programs[target].model))
    program = Program(again, {}, MODELS[name])
    before = node_list(program.graph)
    assert rewrite(program, target) == dict.fromkeys(expected_counts(CONFIG, target), 0)
    assert node_list(program.graph) == before


# What of a traced graph is made another function, and the pass that leaves it alone.
BREAKS = [
    ("opt", "Sqrt", "Abs", {"fuse_layer_norm": 4}),
    ("galactica", "Sqrt", "Abs", {"fuse_layer_norm": 4}),
    ("opt", "Softmax", "LogSoftmax", {"fuse_attention": 1}),
    ("opt-350m", "ScatterND", "ScatterElements", {"fuse_attention": 1}),
    ("galactica", "Split", "Unsplit", {"fuse_attention": 1}),
]


@pytest.mark.parametrize(("name", "op_type", "other", "fewer"), BREAKS)
def test_a_traced_part_that_is_broken_is_not_counted(
    traced: Trace, name: str, op_type: str, other: str, fewer: dict[str, int]
) -> None:
    """One of several is another function: the count shows it, and the rest is rewritten."""
    found = traced(name, Phase.DECODE)
    program = found.model.program()
    nodes_of(program, op_type)[0].op_type = other
    assert rewrite(program, "cpu") == {**found.counts["cpu"], **fewer}
    assert ops(program.graph)[other] == 1


def test_counts_are_named_after_the_passes() -> None:
    names = {target: [run.__name__ for run in passes(target)] for target in TARGETS}
    assert names["portable"] == ["fuse_layer_norm", "fuse_head"]
    fused = ["fuse_attention", "fuse_bias", "separate_lookup"]
    assert names["cpu"] == [*names["portable"], *fused]
    larger = replace(CONFIG, num_layers=12)
    assert expected_counts(larger) == {"fuse_layer_norm": 25, "fuse_head": 1}
    without = replace(larger, final_norm=False)
    assert expected_counts(without) == {"fuse_layer_norm": 24, "fuse_head": 1}
    for target in TARGETS:
        assert list(expected_counts(larger, target)) == names[target]
    for config, norms in ((larger, 25), (without, 24)):
        assert expected_counts(config, "cpu") == {
            "fuse_layer_norm": norms,
            "fuse_head": 1,
            "fuse_attention": 12,
            "fuse_bias": 48,
            "separate_lookup": 1,
        }


# === What target cpu has ===


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("name", MODELS)
def test_attention_is_one_operator_of_each_layer(traced: Trace, name: str, phase: Phase) -> None:
    found = traced(name, phase)
    program = found.programs["cpu"]
    assert found.counts["cpu"] == {
        "fuse_layer_norm": COUNTS[name],
        "fuse_head": 1,
        "fuse_attention": 2,
        "fuse_bias": 8 * found.config.use_bias,
        "separate_lookup": found.config.tied_head,
    }
    assert found.counts["cpu"] == expected_counts(found.config, "cpu")
    assert program.model.opset_imports[FUSED_DOMAIN] == 1
    assert FUSED_DOMAIN not in found.program.model.opset_imports
    fused = [node.op_type for node in program.graph if node.domain == FUSED_DOMAIN]
    assert fused == ["GroupQueryAttention"] * 2
    left = ops(program.graph)
    for traces_of_attention in ("Softmax", "ScatterND", "Split", "Transpose"):
        assert found.ops_before[traces_of_attention] >= 1
        assert left[traces_of_attention] == 0
    assert left["LayerNormalization"] == COUNTS[name]
    for layer, node in enumerate(nodes_of(program, "GroupQueryAttention")):
        assert [value.name for value in node.inputs[3:5]] == list(past_names(layer))
        assert [value.name for value in node.outputs[1:]] == list(present_names(layer))
        assert node.attributes["num_heads"].as_int() == node.attributes["kv_num_heads"].as_int() == 4
        assert node.attributes["scale"].as_float() == pytest.approx(8**-0.5)
        assert node.attributes["do_rotary"].as_int() == 0


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("name", MODELS)
def test_products_add_the_biases_of_the_model(traced: Trace, name: str, phase: Phase) -> None:
    program = traced(name, phase).programs["cpu"]
    parts = ("attention/qkv", "attention/output", "intermediate", "output")
    layers = [f"transformer_layer_{i}/{part}" for i in (0, 1) for part in parts]
    products = [node for node in nodes_of(program, "Gemm") if len(node.inputs) == 3]
    found = [tuple(value.name for value in node.inputs[1:]) for node in products]
    expected = [(f"{layer}/kernel", f"{layer}/bias") for layer in layers]
    assert found == (expected if program.config.use_bias else [])
    assert all(node.attributes.get_int("transB", 0) == 0 for node in products)


# === What is computed ===

CALLS = [
    (Phase.PREFILL, [0, 0], [5, 3]),
    (Phase.PREFILL, [4, 0, 7], [1, 5, 2]),
    (Phase.PREFILL, [0], [1]),
    (Phase.DECODE, [3, 0, 11], [1, 1, 1]),
]
# Several tokens after a past are for one row at a time; a row may have no new token.
CPU_CALLS = [
    (Phase.PREFILL, [0, 0, 0], [5, 3, 0]),
    (Phase.PREFILL, [4], [5]),
    (Phase.PREFILL, [10], [2]),
    (Phase.PREFILL, [0], [1]),
    (Phase.DECODE, [3, 0, 11], [1, 1, 1]),
    (Phase.DECODE, [3, 7], [0, 1]),
    (Phase.DECODE, [0, 0], [1, 1]),
]


@pytest.mark.parametrize(("phase", "past", "new"), CALLS)
@pytest.mark.parametrize("name", MODELS)
def test_passes_keep_what_the_graph_computes(
    traced: Trace, name: str, phase: Phase, past: list[int], new: list[int]
) -> None:
    found, inputs = traced(name, phase), contract_inputs(CONFIG, phase, past, new)
    outputs = len(past) * max(new)
    inputs["output_positions"] = np.arange(outputs)[::-1]
    before, after = found.run(inputs), found.run(inputs, "portable")
    assert before["logits"].std() > 0.5
    assert_same(before, after)
    sizes = {"batch": len(past), "sequence": max(new), "capacity": 12, "outputs": outputs}
    for spec in graph_outputs(found.config, phase):
        shape = tuple(sizes[d] if isinstance(d, str) else d for d in spec.shape)
        assert after[spec.name].shape == shape, spec.name


@pytest.mark.parametrize(("phase", "past", "new"), CPU_CALLS)
@pytest.mark.parametrize("name", MODELS)
def test_fused_operators_keep_what_is_read_of_the_graph(
    traced: Trace, name: str, phase: Phase, past: list[int], new: list[int]
) -> None:
    found, inputs = traced(name, phase), contract_inputs(CONFIG, phase, past, new)
    before, after = found.run(inputs), found.run(inputs, "cpu")
    assert [value.shape for value in before.values()] == [value.shape for value in after.values()]
    assert_same(readable(before, past, new), readable(after, past, new))


@pytest.mark.parametrize(("phase", "past", "new"), CALLS)
@pytest.mark.parametrize("name", ["opt", "opt-350m"])
def test_new_tokens_are_written_where_the_past_ends(
    traced: Trace, name: str, phase: Phase, past: list[int], new: list[int]
) -> None:
    found, inputs = traced(name, phase), contract_inputs(CONFIG, phase, past, new)
    outputs = found.run(inputs, "portable")
    for layer in range(2):
        for old, now in zip(past_names(layer), present_names(layer), strict=True):
            for row, (begin, count) in enumerate(zip(past, new, strict=True)):
                assert np.array_equal(outputs[now][row, :, :begin], inputs[old][row, :, :begin])
                written = outputs[now][row, :, begin : begin + count]
                assert (written != inputs[old][row, :, begin : begin + count]).all()


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
