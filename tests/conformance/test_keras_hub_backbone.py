"""keras-hub's test cases for `OPTBackbone` and what it inherits of `Backbone`.

`docs/keras_hub_cases.md` lists them; its table names the tests here.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("keras")
import keras
import tensorflow as tf

from exporter import OPTBackbone, OPTCausalLM, OPTCausalLMPreprocessor, OPTTokenizer
from exporter.errors import PresetError
from tests.conformance.airports import check_configuration, difference
from tests.exporter.conftest import keras_hub  # noqa: F401

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIZES = {
    "vocabulary_size": 10,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 2,
    "intermediate_dim": 4,
    "max_sequence_length": 5,
}
ONES = {name: np.ones((2, 5), "int32") for name in ("token_ids", "padding_mask")}
CLASSES = (OPTBackbone, OPTCausalLM, OPTCausalLMPreprocessor, OPTTokenizer)
PUBLISHED = ("opt_125m_en", "opt_1.3b_en", "opt_2.7b_en", "opt_6.7b_en")
QUANTIZED_LAYERS = ("Embedding", "ReversibleEmbedding")


@pytest.fixture(scope="module")
def backbone():
    return OPTBackbone(**SIZES)


@pytest.fixture(scope="module")
def saved(backbone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbone") / "preset"
    backbone.save_to_preset(folder)
    return folder


# === The basic checks of a backbone ===


def test_a_backbone_goes_through_its_configuration(backbone):
    check_configuration(backbone)


def test_the_output_has_a_state_a_token(backbone):
    assert backbone(ONES).shape == (2, 5, 2)
    assert backbone.token_embedding(np.zeros((2, 3), "int32")).shape == (2, 3, 2)


@pytest.mark.parametrize("length", [2, 3, 4])
def test_shorter_sequences_are_taken(backbone, length):
    inputs = {name: values[:, :length] for name, values in ONES.items()}
    found = backbone(inputs)
    assert found.shape == (2, length, 2)
    # A model that looks back only says the same of the beginning.
    assert difference(found, np.asarray(backbone(ONES))[:, :length]) <= 1e-6


def test_predict_gives_what_a_call_gives(backbone):
    expected = backbone(ONES)
    assert difference(backbone.predict(ONES, verbose=0), expected) <= 1e-6
    batches = tf.data.Dataset.from_tensor_slices(ONES).batch(2)
    assert difference(backbone.predict(batches, verbose=0), expected) <= 1e-6


def test_the_name_is_the_class_s(backbone):
    assert backbone.name.startswith("opt_backbone")


@pytest.mark.parametrize("name", ["mixed_float16", "mixed_bfloat16", "bfloat16"])
def test_a_dtype_policy_holds_for_every_layer(name):
    policy = keras.dtype_policies.get(name)
    model = OPTBackbone(**SIZES, dtype=policy)
    assert keras.backend.standardize_dtype(model(ONES).dtype) == policy.compute_dtype
    tensors = {name: tf.constant(values) for name, values in ONES.items()}
    assert model.compute_output_spec(tensors).dtype == policy.compute_dtype
    assert {weight.dtype for weight in model.weights} == {policy.variable_dtype}
    others = {
        type(layer).__name__
        for layer in model._flatten_layers()
        if (layer.compute_dtype, layer.variable_dtype) != (policy.compute_dtype, policy.variable_dtype)
    }
    # keras-hub's test leaves the first two out. The third is a mask without weights, which is
    # added to the scores that the softmax takes.
    assert others == {"InputLayer", "Softmax", "CausalBias"}


@pytest.mark.parametrize(("mode", "layers"), [("int8", QUANTIZED_LAYERS), ("float8", ())])
def test_a_map_of_quantized_policies_is_taken(backbone, mode, layers):
    policies = keras.dtype_policies.DTypePolicyMap("float32")
    for layer in backbone._flatten_layers():
        if type(layer).__name__ in layers:
            policies[layer.path] = keras.dtype_policies.get(f"{mode}_from_float32")
    model = OPTBackbone(**SIZES, dtype=policies)
    assert np.isfinite(model(ONES)).all()
    quantized = {
        type(layer).__name__
        for layer in model._flatten_layers()
        if getattr(layer, "quantization_mode", None) == mode
    }
    assert quantized == set(layers)
    again = OPTBackbone.from_config(model.get_config())
    assert again.get_config() == model.get_config()
    again.set_weights(model.get_weights())
    assert difference(again(ONES), model(ONES)) == 0


# === Saving ===


def test_a_backbone_comes_back_from_a_keras_file(backbone, tmp_path):
    backbone.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert type(again) is OPTBackbone
    assert difference(again(ONES), backbone(ONES)) == 0


def test_a_backbone_comes_back_from_a_preset(backbone, saved):
    assert {path.name for path in saved.iterdir()} >= {
        "config.json",
        "model.weights.h5",
        "metadata.json",
    }
    config = json.loads((saved / "config.json").read_text())
    assert config["registered_name"] == "keras_hub>OPTBackbone"
    assert not {"build_config", "compile_config"} & set(config)
    metadata = json.loads((saved / "metadata.json").read_text())
    # No keras-hub wrote it, so there is no version of keras-hub to name.
    assert set(metadata) == {"keras_version", "parameter_count", "date_saved", "tasks"}
    assert metadata["parameter_count"] == backbone.count_params()
    assert metadata["tasks"] == ["CausalLM"]
    assert difference(OPTBackbone.from_preset(saved)(ONES), backbone(ONES)) == 0


def test_a_backbone_is_exported_to_transformers(backbone, tmp_path):
    backbone.export_to_transformers(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "opt"


def test_a_backbone_that_transformers_has_not_is_refused(tmp_path):
    post_norm = OPTBackbone(**SIZES, norm_first=False)
    with pytest.raises(ValueError, match="OPT has no final norm where norms come after"):
        post_norm.export_to_transformers(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


# === Presets ===


@pytest.mark.parametrize("cls", CLASSES)
def test_every_class_lists_the_presets(cls):
    assert set(cls.presets) == {"opt_tiny_en", *PUBLISHED}
    assert "gpt2_base_en" not in cls.presets


@pytest.mark.parametrize("cls", CLASSES)
def test_an_unknown_preset_is_an_error(cls):
    with pytest.raises(PresetError, match="no preset 'clowntown'; give a built-in name"):
        cls.from_preset("clowntown")


@pytest.mark.parametrize("cls", CLASSES)
def test_a_preset_of_another_model_is_an_error(cls, saved, tmp_path):
    config = json.loads((saved / "config.json").read_text())
    config["class_name"], config["registered_name"] = "GPT2Backbone", "keras_hub>GPT2Backbone"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(PresetError):
        cls.from_preset(tmp_path)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_folder_without_a_keras_model_is_an_error(cls, tmp_path):
    (tmp_path / "meta.json").write_text('{"lang": "en", "name": "core_web_sm"}')
    with pytest.raises(PresetError):
        cls.from_preset(tmp_path)


def test_a_preset_is_the_class_s_instance_with_or_without_weights(saved):
    for load_weights in (True, False):
        found = OPTBackbone.from_preset(saved, load_weights=load_weights)
        assert type(found) is OPTBackbone
        assert found(ONES).shape == (2, 5, 2)


def test_keywords_override_a_preset_s_configuration(saved):
    found = OPTBackbone.from_preset(saved, load_weights=False, dtype="bfloat16", dropout=0.5)
    assert found.dtype_policy.name == "bfloat16"
    assert found.dropout == 0.5


@pytest.mark.reference
def test_the_embedded_preset_says_what_keras_hub_says(keras_hub):  # noqa: F811
    from exporter.presets.handles import resolve_preset

    ids = np.array([[2, 133, 2119, 3219, 602, 4]], "int32")
    inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
    folder = str(resolve_preset("opt_tiny_en"))
    expected = keras_hub.models.OPTBackbone.from_preset(folder)(inputs)
    found = OPTBackbone.from_preset("opt_tiny_en")(inputs)
    assert found.shape == (1, 6, 256)
    assert difference(found, expected) <= 1e-4


@pytest.mark.network
def test_the_smallest_published_preset():
    ids = np.array([[133, 2119, 6219, 23602, 4]], "int32")
    found = OPTBackbone.from_preset("opt_125m_en")(
        {"token_ids": ids, "padding_mask": np.ones_like(ids)}
    )
    assert found.shape == (1, 5, 768)
    expected = [-0.246, -1.004, -0.072, 0.097, 0.533]
    np.testing.assert_allclose(np.asarray(found)[0, 0, :5], expected, rtol=0.01, atol=0.01)
    fox = OPTTokenizer.from_preset("opt_125m_en")(["The quick brown fox."])
    assert fox == [[133, 2119, 6219, 23602, 4]]


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize("preset", PUBLISHED)
def test_every_published_preset(preset):
    model = OPTCausalLM.from_preset(preset)
    ids = model.preprocessor(["airplane at airport"], sequence_length=8)[0]
    assert model(ids).shape == (1, 8, model.backbone.vocabulary_size)
