"""The rewrite passes on traced models: they match what is traced and keep what it computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

for package in ("onnx", "onnx_ir", "onnxruntime"):
    pytest.importorskip(package)

import onnx  # noqa: E402
import onnx_ir as ir  # noqa: E402

from graphs.contract import (  # noqa: E402
    ModelConfig,
    Phase,
    graph_inputs,
    graph_outputs,
    past_names,
    present_names,
)
from graphs.passes import PASSES, expected_counts, rewrite  # noqa: E402
from graphs.passes.layer_norm import ONES  # noqa: E402
from graphs.passes.matching import remove_unused  # noqa: E402
from graphs.program import Program  # noqa: E402
from tests.graphs.pass_helpers import Arrays, assert_same, ops, parse, run_model  # noqa: E402

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


@dataclass
class Traced:
    """A phase's graph before and after the passes, and what they counted."""

    config: ModelConfig
    program: Program
    before: Any
    after: Any
    ops_before: Counter[str]
    counts: dict[str, int]

    @property
    def norms(self) -> list[Any]:
        return [node for node in self.program.graph if node.op_type == "LayerNormalization"]


Trace = Callable[[str, Phase], Traced]


@pytest.fixture(scope="module")
def traced() -> Trace:
    """A model traced as an export traces it, each once."""
    for package in ("tensorflow", "keras", "tf2onnx"):
        pytest.importorskip(package)
    from exporter.tracing import build_weightless_backbone, trace

    found: dict[tuple[str, Phase], Traced] = {}

    def traced_model(name: str, phase: Phase) -> Traced:
        if (name, phase) not in found:
            program = trace(build_weightless_backbone(MODELS[name]), phase)
            before, ops_before = ir.to_proto(program.model), ops(program.graph)
            counts = rewrite(program)
            after = ir.to_proto(program.model)
            found[name, phase] = Traced(MODELS[name], program, before, after, ops_before, counts)
        return found[name, phase]

    return traced_model


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


# === What is matched ===

COUNTS = {"opt": 5, "opt-350m": 4, "galactica": 5, "other": 5}


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("name", MODELS)
def test_every_pass_matches_as_often_as_an_opt_decoder_has_it(
    traced: Trace, name: str, phase: Phase
) -> None:
    found, norms = traced(name, phase), COUNTS[name]
    assert found.counts == {"fuse_layer_norm": norms, "fuse_head": 1}
    assert found.counts == expected_counts(found.config)
    after = ops(found.program.graph)
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
    pairs = {(norm.inputs[1].name, norm.inputs[2].name) for norm in found.norms}
    assert pairs == {(f"{name}/gamma", f"{name}/beta") for name in names}
    for norm in found.norms:
        assert norm.attributes["epsilon"].as_float() == pytest.approx(1e-5)
        assert norm.attributes["axis"].as_int() == -1


@pytest.mark.parametrize("phase", Phase)
def test_norms_without_scales_share_a_constant(traced: Trace, phase: Phase) -> None:
    found = traced("galactica", phase)
    assert [[value.name for value in norm.inputs[1:]] for norm in found.norms] == [[ONES]] * 5
    assert {norm.attributes["epsilon"].as_float() for norm in found.norms} == {np.float32(1e-5)}
    ones = found.program.graph.initializers[ONES].const_value.numpy()
    assert ones.shape == (32,)
    assert (ones == 1).all()


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("name", MODELS)
def test_a_second_time_there_is_nothing_to_do(traced: Trace, name: str, phase: Phase) -> None:
    program = Program(ir.from_proto(traced(name, phase).after), {}, MODELS[name])
    before = [(node.op_type, node.outputs[0].name) for node in program.graph]
    assert rewrite(program) == {"fuse_layer_norm": 0, "fuse_head": 0}
    assert [(node.op_type, node.outputs[0].name) for node in program.graph] == before


@pytest.mark.parametrize("name", ["opt", "galactica"])
def test_a_traced_norm_that_is_broken_is_not_counted(traced: Trace, name: str) -> None:
    """One root of five is another function: the count shows it, and the rest is rewritten."""
    found = traced(name, Phase.DECODE)
    model = ir.from_proto(found.before)
    values = {value.name: value for node in model.graph for value in node.inputs if value is not None}
    weights = {name: values[name] for name in found.program.weights}
    for weight_name, value in weights.items():  # which an input of no graph has lost
        value.shape = found.program.weights[weight_name].shape
    next(node for node in model.graph if node.op_type == "Sqrt").op_type = "Abs"
    assert rewrite(Program(model, weights, found.config)) == {"fuse_layer_norm": 4, "fuse_head": 1}
    assert ops(model.graph)["Abs"] == 1


def test_counts_are_named_after_the_passes() -> None:
    names = [run.__name__ for run in PASSES]
    assert names == ["fuse_layer_norm", "fuse_head"]
    larger = replace(CONFIG, num_layers=12)
    assert expected_counts(larger) == {"fuse_layer_norm": 25, "fuse_head": 1}
    assert list(expected_counts(larger)) == names
    without = replace(larger, final_norm=False)
    assert expected_counts(without) == {"fuse_layer_norm": 24, "fuse_head": 1}


# === What is computed ===

CALLS = [
    (Phase.PREFILL, [0, 0], [5, 3]),
    (Phase.PREFILL, [4, 0, 7], [1, 5, 2]),
    (Phase.PREFILL, [0], [1]),
    (Phase.DECODE, [3, 0, 11], [1, 1, 1]),
]


@pytest.mark.parametrize(("phase", "past", "new"), CALLS)
@pytest.mark.parametrize("name", MODELS)
def test_passes_keep_what_the_graph_computes(
    traced: Trace, name: str, phase: Phase, past: list[int], new: list[int]
) -> None:
    found, inputs = traced(name, phase), feeds(phase, past, new)
    weights = random_weights(found.program)
    before = run_model(with_weights(found.before, weights), inputs)
    after = run_model(with_weights(found.after, weights), inputs)
    assert before["logits"].std() > 0.5
    assert_same(before, after)
    sizes = {"batch": len(past), "sequence": max(new), "capacity": 12}
    for spec in graph_outputs(found.config, phase):
        shape = tuple(sizes[d] if isinstance(d, str) else d for d in spec.shape)
        assert after[spec.name].shape == shape, spec.name


@pytest.mark.parametrize(("phase", "past", "new"), CALLS)
@pytest.mark.parametrize("name", ["opt", "opt-350m"])
def test_new_tokens_are_written_where_the_past_ends(
    traced: Trace, name: str, phase: Phase, past: list[int], new: list[int]
) -> None:
    found, inputs = traced(name, phase), feeds(phase, past, new)
    outputs = run_model(with_weights(found.after, random_weights(found.program)), inputs)
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
