"""Checks that a graph is what the contract says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

from graphs.contract import (
    ModelConfig,
    Phase,
    Revision,
    TensorSpec,
    graph_inputs,
    graph_outputs,
)


class ContractError(ValueError):
    """A graph breaks the contract."""


def check_graph(
    path: Path,
    config: ModelConfig,
    phase: Phase,
    weights_name: str,
    cache_dtype: str,
    revision: Revision = Revision.HOST,
) -> None:
    """Runs the ONNX checker and compares inputs, outputs and external data with the contract.

    Raises:
        ContractError: listing every difference.
        onnx.checker.ValidationError: if the file is not valid ONNX.
    """
    onnx.checker.check_model(_without_weights(path), full_check=False)
    graph = ir.load(path).graph
    inputs = graph_inputs(config, phase, cache_dtype, revision)
    outputs = graph_outputs(config, phase, cache_dtype, revision)
    problems = _differences("input", graph.inputs, inputs)
    problems += _differences("output", graph.outputs, outputs)
    for name, value in graph.initializers.items():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and str(tensor.location) != weights_name:
            problems.append(f"weight {name} points to {tensor.location}, not to {weights_name}")
    if not (path.parent / weights_name).is_file():
        problems.append(f"{weights_name} is missing")
    if problems:
        raise ContractError(f"{path.name} breaks the graph contract: {'; '.join(problems)}")


def _without_weights(path: Path) -> onnx.ModelProto:
    """A graph whose weights in other files are inputs.

    The ONNX checker looks for those files and refuses any with a second name (hard links), whatever is
    in them. What they hold is for the manifest's hashes to say.
    """
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    external = [one for one in graph.initializer if one.data_location == onnx.TensorProto.EXTERNAL]
    given = {value.name for value in graph.input}
    for tensor in external:
        graph.initializer.remove(tensor)
        if tensor.name not in given:
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            graph.input.append(info)
    return model


def _differences(kind: str, values: Sequence[ir.Value], specs: list[TensorSpec]) -> list[str]:
    found = [_describe(value) for value in values]
    expected = [(spec.name, spec.dtype, spec.shape) for spec in specs]
    problems = [
        f"{kind} {i} is {have}, not {want}"
        for i, (have, want) in enumerate(zip(found, expected, strict=False))
        if have != want
    ]
    if len(found) != len(expected):
        problems.append(f"{len(found)} {kind}s, not {len(expected)}")
    return problems


def _describe(value: ir.Value) -> tuple[str | None, str, tuple[int | str, ...]]:
    dtype = str(value.dtype.numpy()) if value.dtype is not None else "unknown"
    shape = value.shape if value.shape is not None else ()
    return value.name, dtype, tuple(d if isinstance(d, int) else str(d.value) for d in shape)
