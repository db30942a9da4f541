"""Graphs in ONNX's text form, run before and after a rewrite pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from graphs.contract import ModelConfig
from graphs.passes.matching import remove_unused
from graphs.program import Program

Arrays = dict[str, np.ndarray]
WIDTH = 4  # of the rows in the text graphs


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
    """The same outputs, to a maximum absolute difference."""
    assert list(before) == list(after)
    for name, value in before.items():
        assert value.shape == after[name].shape, name
        assert np.abs(value - after[name]).max() <= tolerance, name


def ops(graph: Any) -> Counter[str]:
    """How many nodes of each operator a graph has."""
    return Counter(node.op_type for node in graph)


def parse(text: str, weights: set[str]) -> Program:
    """A program from ONNX's text form; its weights stay inputs, so that it can be run."""
    model = ir.from_proto(onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 18]>\n{text}'))
    found = {value.name: value for value in model.graph.inputs if value.name in weights}
    config = ModelConfig(6, 1, 1, WIDTH, WIDTH, 8)
    return Program(model, found, config)


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


def edited(text: str, edits: list[tuple[str, str]]) -> str:
    """The text with replacements, every one of which must find its place."""
    for old, new in edits:
        assert old in text, old
        text = text.replace(old, new)
    return text
