"""Traces the OPT backbone into the two graphs of the contract, without any weights.

Keras variables are made with shapes and no values; the weights are inputs of the traced function and
stand in for the variables inside it, so that neither TensorFlow nor protobuf ever holds them.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import onnx
import onnx_ir as ir
import tensorflow as tf

from exporter.opt.backbone import OPTBackbone
from exporter.opt.cached_forward import cached_forward
from exporter.opt.keras_backend import keras, without_values
from graphs.contract import ModelConfig, Phase, TensorSpec, graph_inputs, graph_outputs
from graphs.program import Program

OPSET = 18  # the newest that tf2onnx writes


def build_weightless_backbone(config: ModelConfig) -> OPTBackbone:
    """A backbone whose variables have shapes and no values."""
    with without_values():
        return OPTBackbone.from_sizes(config, dropout=0.0, dtype="float32")


def weight_shapes(backbone: OPTBackbone) -> dict[str, tuple[int, ...]]:
    """Shape of every weight by its Keras path."""
    return {variable.path: tuple(variable.shape) for variable in backbone.variables}


def trace(backbone: OPTBackbone, phase: Phase) -> Program:
    """The traced graph of a phase, its weights still inputs, named by their Keras paths.

    Args:
        backbone: from `build_weightless_backbone`.
        phase: which graph.
    """
    config = backbone.model_config
    inputs, outputs = graph_inputs(config, phase), graph_outputs(config, phase)
    variables = list(backbone.variables)

    def function(*tensors: Any) -> tuple[Any, ...]:
        graph_tensors, weights = tensors[: len(inputs)], tensors[len(inputs) :]
        for tensor, variable in zip(weights, variables, strict=True):
            tensor.set_shape(variable.shape)
        mapping = list(zip(variables, weights, strict=True))
        # The lengths of what is new are for the fused attention, see `graphs.passes.attention`.
        ids, past_lengths, _, output_positions, *flat = graph_tensors
        caches = list(zip(flat[::2], flat[1::2], strict=True))
        # Without initialize_variables=False, Keras allocates every variable when the scope ends.
        with keras.StatelessScope(state_mapping=mapping, initialize_variables=False):
            logits, hidden, presents = cached_forward(
                backbone, ids, past_lengths, output_positions, caches
            )
        results = [logits, hidden, *(tensor for present in presents for tensor in present)]
        return tuple(tf.identity(tensor, name=f"out_{i}") for i, tensor in enumerate(results))

    # Known shapes would make TensorFlow's graph optimizer fill every placeholder with a tensor.
    weight_specs = [
        tf.TensorSpec([None] * len(variable.shape), tf.float32, name=f"weight_{i}")
        for i, variable in enumerate(variables)
    ]
    specs = [_tensor_spec(spec, i) for i, spec in enumerate(inputs)]
    model = _convert(tf.function(function), [*specs, *weight_specs])
    weights = [(v.path, tuple(v.shape)) for v in variables]
    return _as_program(model, config, inputs, outputs, weights)


def _tensor_spec(spec: TensorSpec, index: int) -> Any:
    shape = [d if isinstance(d, int) else None for d in spec.shape]
    return tf.TensorSpec(shape, spec.dtype, name=f"in_{index}")


def _convert(function: Any, specs: list[Any]) -> onnx.ModelProto:
    import tf2onnx

    with _quiet(), _without_copies():
        model, _ = tf2onnx.convert.from_function(function, input_signature=specs, opset=OPSET)
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """tf2onnx tells at INFO and WARNING what only its own developers can use."""
    loggers = [logging.getLogger(name) for name in ("tf2onnx", "tensorflow")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _without_copies() -> Iterator[None]:
    """Errors of tf2onnx's optimizers are raised; to pass over them, each would get a copy of the graph.

    The copies take a third of a trace's time. See `TF2ONNX_CATCH_ERRORS` in `tf2onnx.convert`, which
    looks only at whether there is such a variable.
    """
    name = "TF2ONNX_CATCH_ERRORS"
    before = os.environ.get(name)
    os.environ[name] = "FALSE"
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def _as_program(
    model: onnx.ModelProto,
    config: ModelConfig,
    inputs: list[TensorSpec],
    outputs: list[TensorSpec],
    weights: list[tuple[str, tuple[int, ...]]],
) -> Program:
    """The converted model with the contract's names and shapes, weights told apart from inputs."""
    graph_model = ir.from_proto(model)
    graph = graph_model.graph
    by_name = {value.name: value for value in graph.inputs}
    ordered = [by_name[f"in_{i}"] for i in range(len(inputs))]
    weight_values = [by_name[f"weight_{i}"] for i in range(len(weights))]
    for value, spec in zip(ordered, inputs, strict=True):
        value.name, value.shape = spec.name, ir.Shape(spec.shape)
    for value, (name, shape) in zip(weight_values, weights, strict=True):
        value.name, value.shape = name, ir.Shape(shape)
    for value, spec in zip(graph.outputs, outputs, strict=True):
        value.name, value.shape = spec.name, ir.Shape(spec.shape)
    graph.inputs.clear()
    graph.inputs.extend(ordered)
    graph.name = "opt"
    names = [name for name, _ in weights]
    return Program(graph_model, dict(zip(names, weight_values, strict=True)), config)
