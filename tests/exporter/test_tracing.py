"""Tracing: no weights, and inputs and outputs as the contract lists them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from exporter import OPTBackbone
from exporter.opt.keras_backend import keras
from exporter.tracing import build_weightless_backbone, trace, weight_shapes
from graphs.contract import ModelConfig, Phase, graph_inputs, graph_outputs


@pytest.fixture(scope="module", params=["opt", "switches"])
def config(request, toy_config):
    """OPT itself, and a model that has every switch another way."""
    if request.param == "opt":
        return toy_config
    return replace(
        toy_config,
        embedding_dim=16,
        activation="gelu",
        norm_first=False,
        final_norm=False,
        use_bias=False,
        norm_affine=False,
        tied_head=False,
    )


@pytest.fixture(scope="module")
def backbone(config):
    return build_weightless_backbone(config)


@pytest.fixture(scope="module", params=list(Phase), ids=str)
def phase(request):
    return request.param


@pytest.fixture(scope="module")
def program(backbone, phase):
    return trace(backbone, phase)


def described(values):
    return [
        (v.name, str(v.dtype.numpy()), tuple(d if isinstance(d, int) else d.value for d in v.shape))
        for v in values
    ]


def test_no_variable_has_a_value(backbone):
    is_opt = not backbone.model_config.switches
    assert len(backbone.variables) == (4 + 12 * 2 if is_opt else 5 + 4 * 2)
    for variable in backbone.variables:
        assert variable._value is None, variable.path


def test_a_model_that_no_machine_could_hold_can_be_built():
    """Over 400 GB of weights: any value at all would show."""
    config = ModelConfig(
        vocabulary_size=50272,
        num_layers=2,
        num_heads=96,
        hidden_dim=65536 + 32768,
        intermediate_dim=4 * 98304,
        max_sequence_length=2048,
    )
    assert config.num_parameters * 4 > 400e9
    shapes = weight_shapes(build_weightless_backbone(config))
    assert sum(int(np.prod(s, dtype=object)) for s in shapes.values()) == config.num_parameters


def test_every_combination_of_switches_has_the_parameters_that_keras_counts():
    flags = ("final_norm", "use_bias", "norm_affine", "tied_head")
    for width in (None, 16, 48):
        for values in itertools.product([True, False], repeat=len(flags)):
            switches = dict(zip(flags, values, strict=True))
            config = ModelConfig(30, 1, 4, 32, 64, 8, embedding_dim=width, **switches)
            backbone = build_weightless_backbone(config)
            assert backbone.count_params() == config.num_parameters, config.switches


def test_weight_shapes_are_those_of_a_real_backbone(backbone, config):
    shapes = weight_shapes(backbone)
    real = OPTBackbone.from_sizes(config, dropout=0.0)
    assert shapes == {v.path: tuple(v.shape) for v in real.variables}
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == config.num_parameters


def test_the_program_knows_its_model(program, config):
    assert program.config == config


def test_inputs_and_outputs_are_the_contract_s(program, phase, config):
    for values, specs in (
        (program.graph.inputs, graph_inputs(config, phase)),
        (program.graph.outputs, graph_outputs(config, phase)),
    ):
        assert described(values) == [(s.name, s.dtype, s.shape) for s in specs]


def test_weights_are_named_values_without_values(program, backbone):
    assert {n: tuple(v.shape) for n, v in program.weights.items()} == weight_shapes(backbone)
    for name, value in program.weights.items():
        assert value.name == name
        assert value.const_value is None
        assert value.producer() is None
        assert value.uses(), name
        assert value.dtype == ir.DataType.FLOAT


def test_no_constant_is_as_large_as_a_weight(program):
    """A weight that was folded into the graph would be one."""
    constants = [v.const_value for v in program.graph.initializers.values()]
    constants += [
        node.attributes["value"].value for node in program.graph if node.op_type == "Constant"
    ]
    assert constants
    assert max(constant.size for constant in constants) <= 16


def test_standard_operators_only(program):
    assert program.model.opset_imports[""] == 18
    assert {node.domain for node in program.graph} == {""}
    for op_type in {node.op_type for node in program.graph}:
        assert not onnx.defs.get_schema(op_type, 18, "").deprecated, op_type


@pytest.mark.parametrize(
    ("activation", "operator"),
    [("relu", "Relu"), ("gelu", "Erf"), ("gelu_tanh", "Tanh"), ("silu", "Sigmoid")],
)
def test_each_activation_is_in_standard_operators(activation, operator):
    config = ModelConfig(23, 1, 3, 15, 7, 11, activation=activation)
    program = trace(build_weightless_backbone(config), Phase.DECODE)
    found = {node.op_type for node in program.graph}
    assert found & {"Relu", "Erf", "Tanh", "Sigmoid"} == {operator}
    for op_type in found:
        assert onnx.defs.has(op_type, 18, ""), op_type


def test_tracing_leaves_the_backbone_without_values(program, backbone):
    test_no_variable_has_a_value(backbone)


def test_every_size_shows_in_the_contract(phase):
    """Other sizes, all different, one layer: nothing of the toy is fixed."""
    config = ModelConfig(
        vocabulary_size=23,
        num_layers=1,
        num_heads=3,
        hidden_dim=15,
        intermediate_dim=7,
        max_sequence_length=11,
    )
    program = trace(build_weightless_backbone(config), phase)
    assert described(program.graph.outputs)[0] == ("logits", "float32", ("outputs", 23))
    caches = [shape for name, _, shape in described(program.graph.inputs) if name.endswith("key")]
    assert caches == [("batch", 3, "capacity", 5)]
    assert len(program.weights) == 16


def test_no_other_scope_gives_values_to_a_weightless_backbone(backbone):
    """Keras fills what waits for values when a scope ends: `stateless_call`'s, of any other model."""
    layer = keras.layers.Dense(1)
    layer.build((None, 2))
    layer.stateless_call(layer.trainable_variables, [], np.ones((1, 2), "float32"))
    test_no_variable_has_a_value(backbone)
