"""Graphs in ONNX's text form and traced ones, run before and after a rewrite pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from graphs.contract import ModelConfig, Phase, graph_inputs
from graphs.passes.matching import remove_unused
from graphs.program import Program
from runtime.wanted_outputs import last_tokens

Arrays = dict[str, np.ndarray]
WIDTH = 4  # of the rows in the text graphs
TEXT_CONFIG = ModelConfig(6, 1, 1, WIDTH, WIDTH, 8)


def run_model(model: Any, feeds: Arrays, *, exact: bool = False) -> Arrays:
    """What ONNX Runtime computes with no rewriting of its own.

    With `exact`, sums of products of 8-bit numbers do not saturate on CPUs without VNNI, as the runtime
    has it there. That is one of ONNX Runtime's own rewritings.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    else:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    wanted = {value.name for value in session.get_inputs()}
    values = session.run(names, {name: feeds[name] for name in feeds if name in wanted})
    return dict(zip(names, values, strict=True))


def assert_same(before: Arrays, after: Arrays, tolerance: float = 1e-5) -> None:
    """The same outputs, to a maximum absolute difference."""
    assert list(before) == list(after)
    for name, value in before.items():
        assert value.shape == after[name].shape, name
        assert np.abs(value - after[name]).max() <= tolerance, name


def ops(graph: Any) -> Counter[str]:
    """How many nodes of each operator a graph has."""
    return Counter(node.op_type for node in graph)


def node_list(graph: Any) -> list[tuple[str, str]]:
    """Operator and first output of every node, in order."""
    return [(node.op_type, node.outputs[0].name) for node in graph]


def readable(outputs: Arrays, past: list[int], new: list[int]) -> Arrays:
    """What callers read of a contract's outputs: of new tokens, and of slots that are in use."""
    rows = range(len(past))
    found = {}
    for name, values in outputs.items():
        if name == "logits":
            parts = [values[i] for i in rows if new[i]]
        elif name == "hidden_states":
            parts = [values[i, : new[i]].ravel() for i in rows]
        else:
            parts = [values[i, :, : past[i] + new[i]].ravel() for i in rows]
        found[name] = np.concatenate(parts)
    return found


# === Graphs made by hand ===


def parse(text: str, weights: set[str], config: ModelConfig = TEXT_CONFIG) -> Program:
    """A program from ONNX's text form; its weights stay inputs, so that it can be run."""
    model = ir.from_proto(onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 18]>\n{text}'))
    found = {value.name: value for value in model.graph.inputs if value.name in weights}
    return Program(model, found, config)


def random_inputs(graph: Any) -> Arrays:
    """Noise for inputs of float32; what varies is 5."""
    generator = np.random.default_rng(0)
    return {
        value.name: generator.standard_normal(
            tuple(d if isinstance(d, int) else 5 for d in value.shape)
        ).astype(np.float32)
        for value in graph.inputs
    }


def assert_rewritten(
    text: str,
    weights: set[str],
    run: Callable[[Program], int],
    expected: int,
    *,
    config: ModelConfig = TEXT_CONFIG,
    inputs: Arrays | None = None,
    visible: Callable[[Arrays], Arrays] = lambda outputs: outputs,
) -> Program:
    """The pass matches as often as expected, and the graph computes what it did.

    Where it does not match, the graph has the nodes that it had. `inputs` are random unless given;
    `visible` picks what of the outputs has to stay the same.
    """
    program = parse(text, weights, config)
    remove_unused(program.graph)  # what an edit of the text has cut off
    nodes = node_list(program.graph)
    inputs = random_inputs(program.graph) if inputs is None else inputs
    before = run_model(ir.to_proto(program.model), inputs)
    count = run(program)
    model = ir.to_proto(program.model)
    onnx.checker.check_model(model)
    assert_same(visible(before), visible(run_model(model, inputs)))
    assert count == expected
    if not expected:
        assert node_list(program.graph) == nodes
    return program


def edited(text: str, edits: list[tuple[str, str]]) -> str:
    """The text with replacements, every one of which must find its place."""
    for old, new in edits:
        assert old in text, old
        text = text.replace(old, new)
    return text


# === Traced graphs ===


def other_hidden_states(program: Program) -> None:
    """Has another operator than Reshape give the hidden states."""
    hidden = next(value for value in program.graph.outputs if value.name == "hidden_states")
    node = hidden.producer()
    assert node is not None
    node.op_type = "Expand"


@dataclass
class TracedModel:
    """A graph as an export traces it, which can be rewritten any number of times."""

    config: ModelConfig
    model: Any
    weight_shapes: dict[str, tuple[int, ...]]

    def program(self) -> Program:
        """A copy that nothing has rewritten yet."""
        model = ir.from_proto(self.model)
        values = {v.name: v for node in model.graph for v in node.inputs if v is not None}
        weights = {name: values[name] for name in self.weight_shapes}
        for name, value in weights.items():  # the weights are no inputs, so the model forgot these
            value.shape, value.dtype = ir.Shape(self.weight_shapes[name]), ir.DataType.FLOAT
        return Program(model, weights, self.config)

    def random_weights(self) -> Arrays:
        """A value for every weight."""
        generator = np.random.default_rng(0)
        return {
            name: (0.3 * generator.standard_normal(shape) + name.endswith("gamma")).astype(np.float32)
            for name, shape in self.weight_shapes.items()
        }


def trace_model(config: ModelConfig, phase: Phase) -> TracedModel:
    """Traces a phase of a model; needs the exporter."""
    from tests.traced_graphs import traced_program

    program = traced_program(config, phase)
    shapes = {name: tuple(map(int, value.shape)) for name, value in program.weights.items()}
    return TracedModel(config, ir.to_proto(program.model), shapes)


def with_weights(model: Any, weights: Arrays) -> Any:
    """A copy of a traced model whose weights have values."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    used = {name for node in copy.graph.node for name in node.input}
    copy.graph.initializer.extend(
        onnx.numpy_helper.from_array(values, name) for name, values in weights.items() if name in used
    )
    return copy


def with_views(program: Program, values: Arrays) -> Arrays:
    """Values of a program's weights by name, and of those that share the bytes of another one."""
    views: Arrays = {}
    for name, base in program.views.items():
        views[name] = values[base].reshape(program.shape_of(name))
    return {**values, **views}


def contract_inputs(
    config: ModelConfig, phase: Phase, past: list[int], new: list[int], capacity: int = 12
) -> Arrays:
    """Inputs with a cache full of noise; rows have pasts of different lengths.

    The logits are those of each row's last new token.
    """
    generator = np.random.default_rng(1)
    sizes = {"batch": len(past), "sequence": max(new), "capacity": capacity, "outputs": len(past)}
    values: Arrays = {}
    for spec in graph_inputs(config, phase):
        shape = tuple(sizes[d] if isinstance(d, str) else d for d in spec.shape)
        values[spec.name] = generator.standard_normal(shape).astype(spec.dtype)
    values["input_ids"] = generator.integers(0, config.vocabulary_size, (len(past), max(new)))
    values["past_lengths"] = np.array(past, np.int32)
    values["new_lengths"] = np.array(new, np.int32)
    values["output_positions"] = last_tokens(np.array(new), max(new))
    return values
