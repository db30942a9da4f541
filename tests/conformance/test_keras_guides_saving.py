"""Keras's guides on saving, serialization and cloning, with the OPT family in place of their models."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest

from exporter import OPTBackbone, OPTCausalLM
from runtime import samplers
from tests.conformance.airports import difference
from tests.conformance.guide_models import TEXTS, Family, tensors, tokens

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

OURS = Family.of("exporter")
INPUTS = tokens()


def again(model, folder, **options):
    """A model through a `.keras` file."""
    model.save(folder / "model.keras")
    return keras.saving.load_model(folder / "model.keras", **options)


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


@keras.saving.register_keras_serializable(package="tests.guides")
class TopKSampler(samplers.Sampler):
    """Of the user's own, by the name of a built-in one."""

    def get_next_token(self, probabilities, generators):
        return np.zeros(len(probabilities), int)


@keras.saving.register_keras_serializable(package="tests.guides")
class FirstState(keras.Model):
    """A subclassed model around a backbone, as the saving guide writes one."""

    def __init__(self, backbone, **kwargs):
        super().__init__(**kwargs)
        self.backbone = backbone
        self.head = keras.layers.Dense(2)

    def call(self, inputs, training=False):
        return self.head(self.backbone(inputs, training=training)[:, 0])

    def get_config(self):
        return {
            **super().get_config(),
            "backbone": keras.saving.serialize_keras_object(self.backbone),
        }

    @classmethod
    def from_config(cls, config):
        backbone = keras.saving.deserialize_keras_object(config.pop("backbone"))
        return cls(backbone, **config)


# === Functional models ===


def test_a_functional_model_on_the_backbone_s_output_loads_again(family, tmp_path):
    backbone = family.backbone()
    head = keras.layers.Dense(3, name="head")(backbone.output[:, -1, :])
    model = keras.Model(backbone.input, head)
    model.compile("adam", "mse", run_eagerly=True)
    model.train_on_batch(INPUTS, np.zeros((2, 3), "float32"))
    loaded = again(model, tmp_path)
    assert difference(loaded(INPUTS), model(INPUTS)) == 0
    assert {type(layer) for layer in loaded.layers} == {type(layer) for layer in model.layers}
    assert int(loaded.optimizer.iterations) == 1
    weights = [v.path.rpartition("/")[2] for v in loaded.weights]
    assert weights == [v.path.rpartition("/")[2] for v in model.weights]


def test_a_functional_model_of_a_backbone_as_layer_loads_again(family, tmp_path):
    first, second = tensors("a_"), tensors("b_")
    backbone = family.backbone()  # shared by both inputs
    states = [keras.layers.GlobalAveragePooling1D()(backbone(side)) for side in (first, second)]
    model = keras.Model([first, second], keras.layers.Dot(1, normalize=True)(states))
    loaded = again(model, tmp_path)
    assert type(loaded.get_layer(backbone.name)) is type(backbone)
    other = tokens(rows=3)
    pair = [INPUTS, {name: values[1:] for name, values in other.items()}]
    assert difference(loaded(pair), model(pair)) == 0
    assert len(loaded.weights) == len(model.weights) == len(backbone.weights)


def test_features_between_layers_load_again(family, tmp_path):
    backbone = family.backbone(num_layers=2)
    states = [layer.output for layer in backbone.transformer_layers]
    model = keras.Model(backbone.input, [*states, backbone.get_layer("embeddings").output])
    loaded = again(model, tmp_path)
    for found, expected in zip(loaded(INPUTS), model(INPUTS), strict=True):
        assert difference(found, expected) == 0
    last = backbone.layer_norm(model(INPUTS)[1])
    assert difference(last, backbone(INPUTS)) < 1e-6


def test_a_functional_model_of_a_language_model_as_layer_loads_again(family, tmp_path):
    causal_lm, inputs = family.model(), tensors()
    model = keras.Model(inputs, keras.layers.Softmax()(causal_lm(inputs)))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*the model's `compile\\(\\)` method is custom")  # theirs
        loaded = again(model, tmp_path)
    assert difference(loaded(INPUTS), model(INPUTS)) == 0
    assert type(loaded.get_layer(causal_lm.name)) is type(causal_lm)


def test_a_sequential_model_around_a_backbone_loads_again(family, tmp_path):
    model = keras.Sequential(
        [family.backbone(), keras.layers.GlobalMaxPooling1D(), keras.layers.Dense(2)]
    )
    expected = np.asarray(model(INPUTS))
    assert difference(again(model, tmp_path)(INPUTS), expected) == 0


@pytest.mark.slow
def test_a_subclassed_model_around_a_backbone_loads_again(family, tmp_path):
    model = FirstState(family.backbone())
    model.compile("adam", "mse", run_eagerly=True)
    model.train_on_batch(INPUTS, np.zeros((2, 2), "float32"))
    assert difference(again(model, tmp_path)(INPUTS), model(INPUTS)) == 0
    model.save_weights(tmp_path / "model.weights.h5")
    other = FirstState(family.backbone(seed=1))
    other(INPUTS)
    other.load_weights(tmp_path / "model.weights.h5")
    assert difference(other(INPUTS), model(INPUTS)) == 0


def test_switches_and_narrow_dtypes_load_again_in_functional_models(tmp_path):
    backbone = OURS.backbone(
        dtype="mixed_bfloat16", embedding_dim=6, activation="gelu", norm_first=False, final_norm=False
    )
    model = keras.Model(backbone.input, keras.layers.Dense(2, dtype="float32")(backbone.output))
    loaded = again(model, tmp_path)
    assert difference(loaded(INPUTS), model(INPUTS)) == 0
    assert [layer.dtype_policy.name for layer in loaded.layers] == [
        layer.dtype_policy.name for layer in model.layers
    ]


def test_every_layer_is_registered_under_the_package_s_name():
    backbone = OURS.backbone(embedding_dim=6, tied_head=False)
    own = {
        type(part)
        for part in backbone._flatten_layers()
        if type(part).__module__.startswith("exporter")
    }
    names = {keras.saving.get_registered_name(cls) for cls in own}
    assert names == {f"opt_onnx>{cls.__name__}" for cls in own}
    assert {"opt_onnx>OPTEmbedding", "opt_onnx>OPTDecoderLayer", "opt_onnx>OPTAttention"} <= names
    for name, cls in zip(sorted(names), sorted(own, key=lambda cls: cls.__name__), strict=True):
        assert keras.saving.get_registered_object(name) is cls


@pytest.mark.slow
def test_models_load_in_a_process_that_has_imported_a_class_of_the_family(tmp_path):
    backbone = OURS.backbone()
    functional = keras.Model(backbone.input, keras.layers.Dense(2)(backbone.output))
    functional.save(tmp_path / "functional.keras")
    causal_lm = OURS.model()
    causal_lm.save(tmp_path / "causal_lm.keras")
    np.savez(tmp_path / "inputs.npz", **INPUTS)
    code = (
        "import sys, numpy as np; from exporter import OPTCausalLM; import keras\n"
        "inputs = dict(np.load('inputs.npz'))\n"
        "for name in ('functional', 'causal_lm'):\n"
        "    model = keras.saving.load_model(f'{name}.keras')\n"
        "    np.save(f'{name}.npy', np.asarray(model(inputs)))\n"
        "print(model.generate('airplane', max_length=8))"
    )
    child = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    for model, name in ((functional, "functional"), (causal_lm, "causal_lm")):
        assert difference(np.load(tmp_path / f"{name}.npy"), model(INPUTS)) < 1e-6
    assert child.stdout.splitlines()[-1:] == causal_lm.generate("airplane", max_length=8).splitlines()


# === Language models ===


def test_a_frozen_backbone_stays_frozen_in_a_file(family, tmp_path):
    model = family.model()
    model.backbone.trainable = False
    loaded = again(model, tmp_path)
    assert not loaded.backbone.trainable
    assert loaded.trainable_weights == []
    assert len(loaded.weights) == len(model.weights)


def test_what_is_compiled_comes_back_and_nothing_else(tmp_path):
    model = OURS.model()
    model.compile(optimizer="sgd", loss=None, sampler=samplers.BeamSampler(num_beams=3))
    loaded = again(model, tmp_path)
    assert type(loaded.optimizer) is keras.optimizers.SGD
    assert loaded.sampler.get_config() == model.sampler.get_config()
    model.compile(optimizer=None, sampler="contrastive")
    loaded = again(model, tmp_path)
    assert loaded.optimizer is None
    assert type(loaded.sampler) is samplers.ContrastiveSampler
    assert OPTCausalLM(OURS.backbone(), compile=False).get_compile_config() == {}


def test_a_sampler_by_the_name_of_a_built_in_one_is_the_user_s(tmp_path):
    model = OURS.model()
    model.compile(sampler=TopKSampler(seed=4))
    loaded = again(model, tmp_path)
    assert type(loaded.sampler) is TopKSampler
    assert loaded.sampler.seed == 4


def test_models_are_copied_and_pickled(family):
    model = family.model()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*the model's `compile\\(\\)` method is custom")  # theirs
        for part, copied in ((model, copy.deepcopy), (model.backbone, through_pickle)):
            other = copied(part)
            assert type(other) is type(part)
            assert difference(other(INPUTS), part(INPUTS)) == 0
            other.weights[0].assign(np.zeros(other.weights[0].shape))
            assert np.asarray(part.weights[0]).any()


def test_architectures_go_through_json():
    for model in (OURS.model(), OURS.backbone()):
        text = model.to_json()
        other = keras.models.model_from_json(text)
        assert type(other) is type(model)
        assert json.loads(other.to_json())["config"] == json.loads(text)["config"]


def test_weights_go_from_model_to_model(family, tmp_path):
    model, other = family.model(), family.model(seed=1)
    other.set_weights(model.get_weights())
    assert difference(other(INPUTS), model(INPUTS)) == 0
    model.save_weights(tmp_path / "model.weights.h5")
    other = family.model(seed=1)
    other.load_weights(tmp_path / "model.weights.h5")
    assert difference(other(INPUTS), model(INPUTS)) == 0
    wider = family.model(intermediate_dim=20)
    with pytest.raises(ValueError, match="could not be loaded"):
        wider.load_weights(tmp_path / "model.weights.h5")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wider.load_weights(tmp_path / "model.weights.h5", skip_mismatch=True)
    table = (wider.backbone.token_embedding.embeddings, model.backbone.token_embedding.embeddings)
    assert difference(*table) == 0


@pytest.mark.slow
@pytest.mark.parametrize("part", ["model", "backbone"])
def test_a_saved_model_serves_in_tensorflow(family, tmp_path, part):
    model = getattr(family, part)()
    model.export(tmp_path / "saved", verbose=False)
    layer = keras.layers.TFSMLayer(tmp_path / "saved", call_endpoint="serve")
    assert difference(layer(INPUTS), model(INPUTS)) < 1e-5


# === Cloning ===


@pytest.mark.parametrize("recursive", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_language_model_is_cloned(family, recursive):
    model = family.model()
    model.compile(optimizer="adamw", sampler=family.samplers.TopPSampler(p=0.5), run_eagerly=True)
    clone = keras.models.clone_model(model, recursive=recursive)
    assert type(clone) is type(keras.Model(model.input, model.output))  # Keras makes a plain one
    assert type(clone.optimizer) is keras.optimizers.AdamW
    # Layers are not shared in a clone, so the head is no longer the embedding.
    assert len(clone.weights) == len(model.weights) + 1
    by_name = {v.path.rpartition("/token_embedding/")[2]: v for v in clone.weights}
    assert "embeddings" in by_name
    clone.set_weights([*model.get_weights(), model.backbone.token_embedding.embeddings])
    assert difference(clone(INPUTS), model(INPUTS)) < 1e-6
    x, y, weights = model.preprocessor(TEXTS)
    assert np.isfinite(clone.train_on_batch(x, y, sample_weight=weights)[0])


def test_a_model_that_was_compiled_with_one_s_own_sampler_is_cloned():
    model = OURS.model()
    model.compile(sampler=TopKSampler())
    assert keras.models.clone_model(model).compiled


def test_a_backbone_is_cloned(family):
    backbone = family.backbone()
    clone = keras.models.clone_model(backbone)
    clone.set_weights(backbone.get_weights())
    assert difference(clone(INPUTS), backbone(INPUTS)) == 0


def test_a_clone_function_changes_layers(family):
    backbone = family.backbone(dropout=0.5)

    def without_dropout(layer):
        config = layer.get_config()
        return type(layer).from_config({**config, "dropout": 0.0} if "dropout" in config else config)

    clone = keras.models.clone_model(backbone, clone_function=without_dropout)
    clone.set_weights(backbone.get_weights())
    assert difference(clone(INPUTS, training=True), backbone(INPUTS)) < 1e-6


def test_a_configuration_gives_the_class_back():
    for cls, model in ((OPTCausalLM, OURS.model()), (OPTBackbone, OURS.backbone())):
        other = cls.from_config(model.get_config())
        other.set_weights(model.get_weights())
        assert type(other) is cls
        assert difference(other(INPUTS), model(INPUTS)) == 0
