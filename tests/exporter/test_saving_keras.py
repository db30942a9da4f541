"""Keras's own saving: `.keras` files and weights files, with the tokenizer and what was compiled."""

from __future__ import annotations

import warnings

import keras
import numpy as np
import pytest

from exporter import OPTBackbone, OPTCausalLM
from runtime import samplers
from tests.exporter.test_saving import assert_same_values

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@keras.saving.register_keras_serializable(package="tests")
class LastSampler(samplers.Sampler):
    """Takes the last token whose probability is not below a share of the best one's."""

    def __init__(self, share=1.0, **kwargs):
        super().__init__(**kwargs)
        self.share = share

    def get_next_token(self, probabilities, generators):
        good = probabilities >= self.share * probabilities.max(axis=-1, keepdims=True)
        return good.shape[-1] - 1 - good[:, ::-1].argmax(axis=-1)

    def get_config(self):
        return {"share": self.share, **super().get_config()}


def saved_and_loaded(model, folder, **options):
    """Through a `.keras` file, in which nothing may warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        model.save(folder / "model.keras")
        return keras.saving.load_model(folder / "model.keras", **options)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_a_model_comes_back_whole(build_model, tmp_path, dtype):
    model = build_model(seed=3, dtype=dtype)
    model.compile(sampler=samplers.TopPSampler(p=0.7, k=9, seed=5, temperature=0.8))
    loaded = saved_and_loaded(model, tmp_path)
    assert type(loaded) is OPTCausalLM
    assert type(loaded.backbone) is OPTBackbone
    assert_same_values(loaded.backbone, model.backbone)
    assert loaded.get_config() == model.get_config()
    assert loaded.preprocessor.tokenizer("the quick").tolist() == (
        model.preprocessor.tokenizer("the quick").tolist()
    )
    assert type(loaded.sampler) is samplers.TopPSampler
    assert loaded.sampler.get_config() == model.sampler.get_config()
    prompts = ["the", "import fox"]
    assert loaded.generate(prompts, max_length=14) == model.generate(prompts, max_length=14)


def test_training_goes_on_where_it_stopped(build_model, tmp_path):
    texts = ["the quick brown fox", "import the fox", "quick", "brown the"]
    model = build_model(seed=3)
    model.compile(
        optimizer=keras.optimizers.Adam(3e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, name="own"),
        sampler="greedy",
        run_eagerly=True,
    )
    model.fit(texts, batch_size=2, verbose=0, shuffle=False)
    loaded = saved_and_loaded(model, tmp_path)
    assert float(loaded.optimizer.learning_rate) == pytest.approx(3e-3)
    assert int(loaded.optimizer.iterations) == 2
    for one in (model, loaded):
        one.fit(texts, batch_size=2, verbose=0, shuffle=False)
    assert_same_values(loaded.backbone, model.backbone)


def test_a_sampler_of_one_s_own_comes_back(build_model, tmp_path):
    model = build_model(seed=3)
    model.compile(sampler=LastSampler(share=0.25, temperature=2.0))
    loaded = saved_and_loaded(model, tmp_path)
    assert type(loaded.sampler) is LastSampler
    assert loaded.sampler.get_config() == {"share": 0.25, "temperature": 2.0, "seed": None}
    assert loaded.generate("the", max_length=9) == model.generate("the", max_length=9)


def test_a_model_may_be_loaded_without_what_was_compiled(build_model, tmp_path):
    model = build_model(seed=3)
    model.compile(sampler="greedy")
    loaded = saved_and_loaded(model, tmp_path, compile=False)
    assert type(loaded.sampler) is samplers.TopKSampler  # the default


def test_a_model_without_preprocessor_comes_back_without(build_model, tmp_path):
    loaded = saved_and_loaded(build_model(seed=3, preprocessor=False), tmp_path)
    assert loaded.preprocessor is None


def test_a_backbone_with_switches_comes_back(backbone_sizes, tmp_path):
    switches = {"embedding_dim": 16, "norm_first": False, "final_norm": False, "tied_head": False}
    backbone = OPTBackbone(**{**backbone_sizes, **switches, "activation": "gelu"}, name="mine")
    loaded = saved_and_loaded(backbone, tmp_path)
    assert type(loaded) is OPTBackbone
    assert loaded.get_config() == backbone.get_config()
    assert_same_values(loaded, backbone)


def test_weights_alone(build_model, tmp_path):
    model, other = build_model(seed=3), build_model(seed=4)
    model.save_weights(tmp_path / "m.weights.h5")
    other.load_weights(tmp_path / "m.weights.h5")
    assert_same_values(other.backbone, model.backbone)
    third = build_model(seed=5)
    model.backbone.save_weights(tmp_path / "b.weights.h5")
    third.backbone.load_weights(tmp_path / "b.weights.h5")
    assert_same_values(third.backbone, model.backbone)


def test_a_model_made_of_a_configuration_has_the_same_shape_and_its_own_weights(build_model):
    """The way to a copy: `keras.models.clone_model` makes plain functional models of subclasses."""
    model = build_model(seed=3)
    clone = OPTCausalLM.from_config(model.get_config())
    assert clone.backbone is not model.backbone
    assert clone.get_config() == model.get_config()
    clone.set_weights(model.get_weights())
    assert_same_values(clone.backbone, model.backbone)
    ids = np.array([[2, 40, 41]], "int32")
    inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
    assert np.array_equal(clone(inputs), model(inputs))


def test_from_config_leaves_the_configuration_as_it_was(toy_model):
    config = toy_model.get_config()
    names = list(config)
    first, second = OPTCausalLM.from_config(config), OPTCausalLM.from_config(config)
    assert list(config) == names
    assert first.backbone is not second.backbone
