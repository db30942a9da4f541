"""How often each pass matches, and how many nodes a layer has, for every preset's shape and switch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

for package in ("onnx", "onnx_ir", "tensorflow", "keras", "tf2onnx"):
    pytest.importorskip(package)

from exporter.presets.table import BUILTIN_PRESETS  # noqa: E402
from graphs.contract import ModelConfig, Phase  # noqa: E402
from graphs.passes import expected_counts, rewrite  # noqa: E402
from graphs.quantization import FLOAT, Scheme  # noqa: E402
from tests.graphs.pass_helpers import TracedModel, trace_model  # noqa: E402

TOY = ModelConfig(300, 1, 4, 32, 64, 64)
# What the models of `test_passes` have not: a narrow embedding where norms come first, a head of its
# own there, and heads that the fused attention does not take. Norms, attentions and biases of each.
SWITCHES = {
    "narrow, no final norm": (replace(TOY, embedding_dim=16, final_norm=False), 2, 1, 4),
    "untied, heads of 4": (replace(TOY, hidden_dim=16, activation="gelu", tied_head=False), 3, 0, 4),
    "no biases": (replace(TOY, use_bias=False), 3, 1, 0),
}
SCHEMES = {
    "int8": Scheme("int8", "int8"),
    "int4": Scheme("int4", "int4"),
    "int8 layers, int4 tables": Scheme("int8", "int4"),
}
# Nodes of a layer: four products with their biases, two norms, two sums and attention; an activation,
# or for int8, which clips like ReLU, what quantizes before each product.
LAYER_NODES = {"int8": 13, "int4": 10, "int8 layers, int4 tables": 13}

Trace = Callable[[ModelConfig, Phase], TracedModel]


@pytest.fixture(scope="module")
def traced() -> Trace:
    """Traces a model's phase once."""
    found: dict[tuple[ModelConfig, Phase], TracedModel] = {}

    def model(config: ModelConfig, phase: Phase) -> TracedModel:
        if (config, phase) not in found:
            found[config, phase] = trace_model(config, phase)
        return found[config, phase]

    return model


def shape_of(preset: str, layers: int) -> ModelConfig:
    """A preset's true width, heads and vocabulary in a few layers."""
    return replace(BUILTIN_PRESETS[preset].config, num_layers=layers)


def node_count(model: TracedModel, target: str, scheme: Scheme = FLOAT) -> int:
    program = model.program()
    rewrite(program, target, scheme)
    return len(program.graph)


def quantized_counts(scheme: Scheme, layers: int, attentions: int) -> dict[str, int]:
    """What is counted after the fusions."""
    return {
        "keep_rows": attentions,
        "halve_positions": 1,
        f"quantize_layers_{scheme.layers}": 4 * layers,
        f"quantize_tables_{scheme.tables}": 2,
    }


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize(
    "preset",
    [
        pytest.param(name, marks=() if name == "opt_125m_en" else pytest.mark.slow)
        for name in BUILTIN_PRESETS
    ],
)
def test_every_preset_is_rewritten_whole(traced: Trace, preset: str, phase: Phase) -> None:
    config = shape_of(preset, 2)
    model = traced(config, phase)
    portable = {"fuse_layer_norm": 5, "fuse_head": 1}
    fused = {**portable, "fuse_attention": 2}
    cpu = {**fused, "fuse_bias": 8, "separate_lookup": 1}
    for target, counts in (("portable", portable), ("cpu", cpu)):
        assert rewrite(model.program(), target) == counts == expected_counts(config, target)
    for scheme in SCHEMES.values():
        counts = {**fused, **quantized_counts(scheme, 2, 2)}
        found = rewrite(model.program(), "cpu", scheme)
        assert found == counts == expected_counts(config, "cpu", scheme)
    whole = BUILTIN_PRESETS[preset].config
    layers = whole.num_layers
    assert expected_counts(whole, "cpu") == {
        "fuse_layer_norm": 2 * layers + 1,
        "fuse_head": 1,
        "fuse_attention": layers,
        "fuse_bias": 4 * layers,
        "separate_lookup": 1,
    }
    found = expected_counts(whole, "cpu", SCHEMES["int8"])
    assert found["quantize_layers_int8"] == 4 * layers
    assert found["keep_rows"] == layers


@pytest.mark.slow
@pytest.mark.parametrize("phase", Phase)
def test_the_nodes_of_a_layer_of_a_preset(traced: Trace, phase: Phase) -> None:
    """Four products, two norms, two sums, an activation, and attention between two changes of shape."""
    two, three = (traced(shape_of("opt_125m_en", layers), phase) for layers in (2, 3))
    found = {t: node_count(three, t) - node_count(two, t) for t in ("portable", "cpu")}
    assert found["cpu"] == 12
    assert found["cpu"] < 0.5 * found["portable"]
    for name, scheme in SCHEMES.items():
        nodes = node_count(three, "cpu", scheme) - node_count(two, "cpu", scheme)
        assert nodes == LAYER_NODES[name], name
    # Every shape is rewritten into the same graph.
    for preset in BUILTIN_PRESETS:
        model = traced(shape_of(preset, 2), phase)
        for scheme in (FLOAT, *SCHEMES.values()):
            assert node_count(model, "cpu", scheme) == node_count(two, "cpu", scheme)


@pytest.mark.parametrize(("config", "norms", "attentions", "biases"), SWITCHES.values(), ids=SWITCHES)
def test_switches_are_counted(
    traced: Trace, config: ModelConfig, norms: int, attentions: int, biases: int
) -> None:
    portable = {"fuse_layer_norm": norms, "fuse_head": 1}
    fused = {**portable, "fuse_attention": attentions}
    cpu = {**fused, "fuse_bias": biases, "separate_lookup": config.tied_head}
    for target, counts in (("portable", portable), ("cpu", cpu)):
        program = traced(config, Phase.DECODE).program()
        assert rewrite(program, target) == counts == expected_counts(config, target)
    for scheme in SCHEMES.values():
        program = traced(config, Phase.DECODE).program()
        counts = {**fused, **quantized_counts(scheme, 1, attentions)}
        assert rewrite(program, "cpu", scheme) == counts == expected_counts(config, "cpu", scheme)
