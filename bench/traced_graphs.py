"""Traced graphs on disk: bundles can then be made where TensorFlow is not.

A file is plain ONNX whose weights are inputs behind the contract's, without values, so that it takes
some hundred kB whatever the size of the model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path

import onnx
import onnx_ir as ir

from graphs.contract import ModelConfig, Phase, graph_inputs
from graphs.program import Program

Traced = Callable[[Phase], Program]
# What the file says of itself, in ONNX's metadata.
MODEL_KEY, WEIGHTS_KEY = "opt_onnx.model", "opt_onnx.weights"


def save_program(program: Program, path: Path) -> None:
    """Writes a traced program that no pass has rewritten; it stays as it is."""
    assert not program.views, "a pass has rewritten this program"
    proto = ir.to_proto(program.model)
    proto.graph.input.extend(ir.to_proto(value) for value in program.weights.values())
    facts = {
        MODEL_KEY: json.dumps(program.config.to_dict()),
        WEIGHTS_KEY: json.dumps(list(program.weights)),
    }
    onnx.helper.set_model_props(proto, facts)
    onnx.save_model(proto, str(path))


def load_program(path: Path, config: ModelConfig) -> Program:
    """Reads what `save_program` wrote.

    Raises:
        ValueError: if the file is missing, is no traced graph, or is that of another model.
    """
    if not path.is_file():
        raise ValueError(
            f"{path} is missing; make it where TensorFlow is, with: python -m bench.gpu "
            f"--trace {path.parents[1]}"
        )
    model = ir.from_proto(onnx.load(str(path)))
    try:
        sizes = json.loads(model.metadata_props.pop(MODEL_KEY))
        names = json.loads(model.metadata_props.pop(WEIGHTS_KEY))
    except KeyError as error:
        raise ValueError(f"{path} is no traced graph: it lacks {error}; trace it again") from None
    if ModelConfig.from_dict(sizes) != config:
        raise ValueError(f"{path} is the graph of another model, {sizes}; trace it again")
    inputs = {value.name: value for value in model.graph.inputs}
    weights = {name: inputs.pop(name) for name in names}
    if list(inputs) != [spec.name for spec in graph_inputs(config, Phase.PREFILL)]:
        raise ValueError(f"{path} follows another revision of the graph contract; trace it again")
    model.graph.inputs.clear()
    model.graph.inputs.extend(inputs.values())
    return Program(model, weights, config)


def graph_path(folder: Path, shape: str, phase: Phase) -> Path:
    """Where a graph of a shape lies in a folder of traced graphs."""
    return folder / shape / f"{phase}.onnx"


def trace_shape(folder: Path, shape: str, config: ModelConfig, phases: Collection[Phase]) -> None:
    """Traces graphs of a shape into a folder; needs TensorFlow."""
    from exporter.tracing import build_weightless_backbone, trace

    backbone = build_weightless_backbone(config)
    for phase in phases:
        path = graph_path(folder, shape, phase)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_program(trace(backbone, phase), path)


def traced_in(folder: Path, shape: str, config: ModelConfig) -> Traced:
    """Gives the traced graphs of a shape, each time anew: passes rewrite them in place."""
    return lambda phase: load_program(graph_path(folder, shape, phase), config)
