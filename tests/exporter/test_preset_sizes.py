"""Sizes and switches given to `from_preset` beside what the preset's weights are of."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from exporter import OPTBackbone, OPTCausalLM

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parametrize(
    ("size", "found"),
    [
        ({"max_sequence_length": 32}, "max_sequence_length=64"),
        ({"max_sequence_length": 128}, "max_sequence_length=64"),
        ({"vocabulary_size": 300}, "vocabulary_size=288"),
        ({"num_layers": 3}, "num_layers=2"),
        ({"num_layers": 0}, "num_layers=2"),
        ({"num_heads": 2}, "num_heads=4"),  # the shapes are the same
        ({"hidden_dim": 16, "intermediate_dim": 8}, "hidden_dim=32, intermediate_dim=64"),
        ({"activation": "gelu"}, "activation='relu'"),
        ({"norm_first": False}, "norm_first=True"),
        ({"tied_head": False}, "tied_head=True"),
    ],
)
@pytest.mark.parametrize("cls", [OPTBackbone, OPTCausalLM])
def test_weights_of_another_size_are_refused(toy_preset, cls, size, found):
    asked = ", ".join(f"{name}={value!r}" for name, value in size.items())
    message = (
        f"the weights of .* are of a model with {found}, not {asked}; leave that out, or give load"
    )
    with pytest.raises(ValueError, match=message) as error:
        cls.from_preset(toy_preset, **size)
    assert len(str(error.value).splitlines()) == 1


def test_sizes_may_be_others_without_weights_and_as_they_are_with_them(toy_preset):
    model = OPTCausalLM.from_preset(toy_preset, load_weights=False, max_sequence_length=32)
    assert model.backbone.embeddings.position_embedding.input_dim == 32
    assert OPTBackbone.from_preset(toy_preset, max_sequence_length=64).max_sequence_length == 64


def test_the_last_layers_may_be_left_off(toy_preset, toy_model, padded_tokens):
    """As in keras-hub."""
    short = OPTCausalLM.from_preset(toy_preset, num_layers=1).backbone
    whole = toy_model.backbone
    assert len(short.transformer_layers) == short.num_layers == 1
    found = {v.path: np.asarray(v) for v in short.weights}
    assert found.keys() < {v.path for v in whole.weights}
    for variable in whole.weights:
        if variable.path in found:
            assert np.array_equal(found[variable.path], variable), variable.path
    state = keras.Model(whole.input, whole.transformer_layers[0].output)(padded_tokens)
    expected = np.asarray(whole.layer_norm(state))
    assert np.abs(np.asarray(short(padded_tokens)) - expected).max() < 1e-6
