"""The contract: sizes, tensors, and the revision that pins them."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import Any

import pytest

from graphs.contract import (
    ACTIVATIONS,
    MAX_SIZES,
    ModelConfig,
    Phase,
    TensorSpec,
    cache_shape,
    graph_inputs,
    graph_outputs,
    past_names,
    present_names,
)

SIZES: dict[str, Any] = {
    "vocabulary_size": 300,
    "num_layers": 2,
    "num_heads": 4,
    "hidden_dim": 32,
    "intermediate_dim": 64,
    "max_sequence_length": 64,
}
CONFIG = ModelConfig(**SIZES)
# The switches as in OPT itself.
DEFAULTS: dict[str, Any] = {
    "layer_norm_epsilon": 1e-5,
    "embedding_dim": None,
    "activation": "relu",
    "norm_first": True,
    "final_norm": True,
    "use_bias": True,
    "norm_affine": True,
    "tied_head": True,
}
FLAGS = [name for name, value in DEFAULTS.items() if value is True]


def opt(layers: int, heads: int, hidden: int) -> ModelConfig:
    return ModelConfig(50272, layers, heads, hidden, 4 * hidden, 2048)


# === Sizes ===


def test_derived_sizes() -> None:
    assert CONFIG.head_dim == 8
    assert CONFIG.layer_norm_epsilon == 1e-5
    # Keys and values of 2 layers, 3 rows of 10 tokens, 32 numbers of 4 or 2 bytes.
    assert CONFIG.cache_bytes(3, 10) == 2 * 2 * 3 * 10 * 32 * 4
    assert CONFIG.cache_bytes(3, 10, itemsize=2) == 2 * 2 * 3 * 10 * 32 * 2


def test_parameters_by_hand() -> None:
    attention = 4 * (32 * 32 + 32)
    feed_forward = (32 * 64 + 64) + (64 * 32 + 32)
    norms = 2 * 2 * 32
    total = 2 * (attention + feed_forward + norms) + (300 + 64) * 32 + 2 * 32
    assert CONFIG.num_parameters == total == 28_800


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        # Keras's page of presets says 125.24M for the first.
        (opt(12, 12, 768), 125_237_760),
        (opt(24, 32, 2048), 1_315_753_984),
        (opt(32, 32, 2560), 2_651_591_680),
        (opt(32, 32, 4096), 6_658_465_792),
    ],
)
def test_parameters_of_the_published_models(config: ModelConfig, parameters: int) -> None:
    assert config.num_parameters == parameters


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("value", [0, -1, 2.0, "4", None, True, math.nan])
def test_sizes_are_positive_whole_numbers(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 1, got"):
        ModelConfig(**{**SIZES, name: value})


@pytest.mark.parametrize("value", [0.0, 1.0, -1e-5, math.nan, math.inf, "1e-5", None, 1])
def test_epsilon_is_a_small_number(value: Any) -> None:
    with pytest.raises(ValueError, match="layer_norm_epsilon must be between 0 and 1, got"):
        ModelConfig(**SIZES, layer_norm_epsilon=value)


def test_heads_divide_the_width() -> None:
    with pytest.raises(ValueError, match=r"hidden_dim \(32\) must be a multiple of num_heads \(5\)"):
        ModelConfig(**{**SIZES, "num_heads": 5})


def test_a_configuration_goes_through_json() -> None:
    values = json.loads(json.dumps(CONFIG.to_dict()))
    assert values == {**SIZES, **DEFAULTS}
    assert ModelConfig.from_dict(values) == CONFIG


def test_unknown_and_missing_names_are_all_told() -> None:
    values = {**CONFIG.to_dict(), "rope": 1, "bias": 2}
    del values["num_heads"], values["hidden_dim"], values["use_bias"]
    message = r"unknown names \['bias', 'rope'\], missing \['hidden_dim', 'num_heads'\]"
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_dict(values)


def test_bundles_from_before_the_switches_are_read() -> None:
    """They hold models without any: their manifests have sizes and the epsilon."""
    assert ModelConfig.from_dict({**SIZES, "layer_norm_epsilon": 1e-5}) == CONFIG
    assert ModelConfig.from_dict(SIZES) == CONFIG
    assert CONFIG.switches == {}


def test_a_configuration_is_not_to_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        CONFIG.num_layers = 3  # type: ignore[misc]


# === Switches ===

OTHERS: dict[str, Any] = {
    "layer_norm_epsilon": 1e-6,
    "embedding_dim": 16,
    "activation": "gelu",
    **dict.fromkeys(FLAGS, False),
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_each_switch_is_told_where_it_is_not_opt_s(name: str) -> None:
    config = ModelConfig(**SIZES, **{name: OTHERS[name]})
    assert config.switches == {name: OTHERS[name]}
    assert config != CONFIG
    values = json.loads(json.dumps(config.to_dict()))
    assert ModelConfig.from_dict(values) == config
    assert ModelConfig.from_dict({**SIZES, **config.switches}) == config


def test_all_switches_at_once() -> None:
    config = ModelConfig(**SIZES, **OTHERS)
    assert config.switches == OTHERS
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_the_hidden_width_is_one_spelling_of_no_embedding_width() -> None:
    spelled = ModelConfig(**SIZES, embedding_dim=32)
    assert spelled.embedding_dim is None
    assert spelled == CONFIG
    assert hash(spelled) == hash(CONFIG)
    assert spelled.switches == {}
    assert spelled.to_dict() == CONFIG.to_dict()
    assert spelled.embedding_width == CONFIG.embedding_width == 32
    assert ModelConfig(**SIZES, embedding_dim=48).embedding_width == 48


@pytest.mark.parametrize("value", [0, -1, 16.0, "16", True, False, math.nan])
def test_the_embedding_s_width_is_a_whole_number_or_none(value: Any) -> None:
    expected = f"embedding_dim must be a whole number of at least 1, got {value!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        ModelConfig(**SIZES, embedding_dim=value)


@pytest.mark.parametrize("value", ["tanh", "ReLU", "", None, 1, True, ["relu"]])
def test_activations_have_names(value: Any) -> None:
    expected = f"activation must be one of relu, gelu, gelu_tanh, silu; got {value!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        ModelConfig(**SIZES, activation=value)


@pytest.mark.parametrize("value", ACTIVATIONS)
def test_every_activation_is_a_model_s(value: str) -> None:
    assert ModelConfig(**SIZES, activation=value).activation == value


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize("value", [0, 1, None, "true", 1.0])
def test_flags_are_true_or_false(name: str, value: Any) -> None:
    expected = f"{name} must be true or false, got {value!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        ModelConfig(**SIZES, **{name: value})


def test_parameters_with_switches_by_hand() -> None:
    kernels = 4 * 32 * 32 + 2 * 32 * 64
    assert ModelConfig(**SIZES, use_bias=False).num_parameters == 28_800 - 2 * (5 * 32 + 64)
    assert ModelConfig(**SIZES, norm_affine=False).num_parameters == 28_800 - 5 * 2 * 32
    assert ModelConfig(**SIZES, final_norm=False).num_parameters == 28_800 - 2 * 32
    assert ModelConfig(**SIZES, tied_head=False).num_parameters == 28_800 + 300 * 32
    narrow = 28_800 - 300 * 16 + 2 * 16 * 32
    assert ModelConfig(**SIZES, embedding_dim=16).num_parameters == narrow
    for name, value in (("norm_first", False), ("activation", "silu")):
        assert ModelConfig(**SIZES, **{name: value}).num_parameters == 28_800
    least = ModelConfig(**SIZES, use_bias=False, norm_affine=False, embedding_dim=16, tied_head=False)
    assert least.num_parameters == 2 * kernels + 2 * 300 * 16 + 2 * 16 * 32 + 64 * 32


def test_parameters_of_opt_350m() -> None:
    config = ModelConfig(
        50272, 24, 16, 1024, 4096, 2048, embedding_dim=512, norm_first=False, final_norm=False
    )
    assert config.num_parameters == 331_194_368  # 331.19M, as transformers counts it too
    assert config.switches == {"embedding_dim": 512, "norm_first": False, "final_norm": False}


# === Tensors ===

CACHE = ("batch", 4, "capacity", 8)


def test_inputs_and_outputs_are_those_of_revision_3() -> None:
    """A change here is a new revision: bundles that were written before do not follow it."""
    assert graph_inputs(CONFIG, Phase.PREFILL) == [
        TensorSpec("input_ids", "int64", ("batch", "sequence")),
        TensorSpec("past_lengths", "int32", ("batch",)),
        TensorSpec("new_lengths", "int32", ("batch",)),
        TensorSpec("output_positions", "int64", ("outputs",)),
        TensorSpec("past_key_values.0.key", "float32", CACHE),
        TensorSpec("past_key_values.0.value", "float32", CACHE),
        TensorSpec("past_key_values.1.key", "float32", CACHE),
        TensorSpec("past_key_values.1.value", "float32", CACHE),
    ]
    assert graph_outputs(CONFIG, Phase.PREFILL) == [
        TensorSpec("logits", "float32", ("outputs", 300)),
        TensorSpec("hidden_states", "float32", ("batch", "sequence", 32)),
        TensorSpec("present.0.key", "float32", CACHE),
        TensorSpec("present.0.value", "float32", CACHE),
        TensorSpec("present.1.key", "float32", CACHE),
        TensorSpec("present.1.value", "float32", CACHE),
    ]


def test_decode_differs_by_one_token_only() -> None:
    for function in (graph_inputs, graph_outputs):
        prefill, decode = function(CONFIG, Phase.PREFILL), function(CONFIG, Phase.DECODE)
        fixed = [
            dataclasses.replace(spec, shape=tuple(1 if d == "sequence" else d for d in spec.shape))
            for spec in prefill
        ]
        assert decode == fixed != prefill


def test_only_the_cache_has_the_dtype_of_the_cache() -> None:
    for function in (graph_inputs, graph_outputs):
        plain, half = function(CONFIG, Phase.DECODE), function(CONFIG, Phase.DECODE, "float16")
        changed = [new.name for old, new in zip(plain, half, strict=True) if old != new]
        assert changed == [spec.name for spec in plain if spec.shape == CACHE]
        assert {spec.dtype for spec in half if spec.name in changed} == {"float16"}


def test_hidden_states_are_as_wide_as_the_embedding() -> None:
    """The one tensor that a switch changes: what the head takes is what is given."""
    narrow = ModelConfig(**SIZES, embedding_dim=16)
    for phase, sequence in ((Phase.PREFILL, "sequence"), (Phase.DECODE, 1)):
        assert graph_inputs(narrow, phase) == graph_inputs(CONFIG, phase)
        outputs = graph_outputs(narrow, phase)
        changed = [
            new for old, new in zip(graph_outputs(CONFIG, phase), outputs, strict=True) if old != new
        ]
        assert changed == [TensorSpec("hidden_states", "float32", ("batch", sequence, 16))]
    for name in ("activation", *FLAGS):
        other = ModelConfig(**SIZES, **{name: OTHERS[name]})
        assert graph_outputs(other, Phase.PREFILL) == graph_outputs(CONFIG, Phase.PREFILL)


def test_names_of_a_layer() -> None:
    assert past_names(11) == ("past_key_values.11.key", "past_key_values.11.value")
    assert present_names(11) == ("present.11.key", "present.11.value")
    assert cache_shape(CONFIG) == CACHE


def test_phases() -> None:
    assert [str(phase) for phase in Phase] == ["prefill", "decode"]
    assert Phase("decode") is Phase.DECODE
    with pytest.raises(ValueError, match="'train' is not a valid Phase"):
        Phase("train")


@pytest.mark.parametrize("name", sorted(MAX_SIZES))
def test_sizes_have_bounds_before_anything_is_allocated(name: str) -> None:
    most = MAX_SIZES[name]
    others = {"hidden_dim": 2**12} if name == "num_heads" else {}
    assert getattr(ModelConfig(**{**SIZES, **others, name: most}), name) == most
    with pytest.raises(ValueError, match=f"{name} must be at most {most}, got {2 * most}"):
        ModelConfig(**{**SIZES, name: 2 * most})
