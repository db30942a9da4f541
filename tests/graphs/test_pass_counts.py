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
from tests.graphs.pass_helpers import TracedModel, trace_model  # noqa: E402

TOY = ModelConfig(300, 1, 4, 32, 64, 64)
# What the models of `test_passes` have not: a projection that a norm follows, a head of its own where
# norms come first, and heads that the fused attention does not take; and what the passes count.
SWITCHES = {
    "narrow, no final norm": (replace(TOY, embedding_dim=16, final_norm=False), 2, 1, 2),
    "untied, heads of 4": (replace(TOY, hidden_dim=16, activation="gelu", tied_head=False), 3, 0, 2),
}

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


def node_count(model: TracedModel, target: str) -> int:
    program = model.program()
    rewrite(program, target)
    return len(program.graph)


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("preset", BUILTIN_PRESETS)
def test_every_preset_is_rewritten_whole(traced: Trace, preset: str, phase: Phase) -> None:
    config = shape_of(preset, 2)
    model = traced(config, phase)
    portable = {"fuse_layer_norm": 5, "fuse_head": 1}
    cpu = {**portable, "fuse_attention": 2, "fuse_skip_layer_norm": 4}
    for target, counts in (("portable", portable), ("cpu", cpu)):
        assert rewrite(model.program(), target) == counts == expected_counts(config, target)
    whole = BUILTIN_PRESETS[preset].config
    layers = whole.num_layers
    assert expected_counts(whole, "cpu") == {
        "fuse_layer_norm": 2 * layers + 1,
        "fuse_head": 1,
        "fuse_attention": layers,
        "fuse_skip_layer_norm": 2 * layers,
    }


@pytest.mark.parametrize("phase", Phase)
def test_a_layer_of_a_preset_has_at_most_12_nodes(traced: Trace, phase: Phase) -> None:
    """Four products, two with a bias to add, two joined norms, an activation, and attention's three."""
    two, three = (traced(shape_of("opt_125m_en", layers), phase) for layers in (2, 3))
    found = {t: node_count(three, t) - node_count(two, t) for t in ("portable", "cpu")}
    assert found["cpu"] <= 12
    assert found["cpu"] < 0.5 * found["portable"]
    # Every shape is rewritten into the same graph.
    for preset in BUILTIN_PRESETS:
        assert node_count(traced(shape_of(preset, 2), phase), "cpu") == node_count(two, "cpu")


@pytest.mark.parametrize(("config", "norms", "attentions", "joined"), SWITCHES.values(), ids=SWITCHES)
def test_switches_are_counted(
    traced: Trace, config: ModelConfig, norms: int, attentions: int, joined: int
) -> None:
    portable = {"fuse_layer_norm": norms, "fuse_head": 1}
    cpu = {**portable, "fuse_attention": attentions, "fuse_skip_layer_norm": joined}
    for target, counts in (("portable", portable), ("cpu", cpu)):
        program = traced(config, Phase.DECODE).program()
        assert rewrite(program, target) == counts == expected_counts(config, target)
