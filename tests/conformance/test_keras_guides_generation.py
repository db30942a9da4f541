"""keras-hub's guides on generation and LoRA, with this project's classes in place of theirs."""

from __future__ import annotations

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conformance.airports import SEQUENCE_LENGTH, difference
from tests.conformance.guide_models import TEXTS, Family, tokens

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning",
    "ignore:`shuffle=True` was passed",  # keras-hub's own call of fit
)

OURS = Family.of("exporter")
INPUTS = tokens()
PROMPTS = [" airplane", " at"]


# === Generation ===


def test_prompts_in_every_form():
    """keras-hub's own takes strings and lists; arrays and datasets of strings end in errors."""
    model = OURS.model()
    batches = tf.data.Dataset.from_tensor_slices(PROMPTS).batch(1)
    expected = model.generate(PROMPTS, max_length=6, stop_token_ids=None)
    for form in (np.array(PROMPTS), tf.constant(PROMPTS), batches):
        assert model.generate(form, max_length=6, stop_token_ids=None) == expected
    assert model.generate(PROMPTS[0], max_length=6, stop_token_ids=None) == expected[0]


def test_the_prompt_is_stripped_and_stop_tokens_stop(family):
    def use(model):
        whole = model.generate(PROMPTS[0], stop_token_ids=None)
        rest = model.generate(PROMPTS[0], stop_token_ids=None, strip_prompt=True)
        ids = model.preprocessor.tokenizer(whole)
        stops = tuple(int(i) for i in np.asarray(ids)[-2:])
        return whole, rest, len(model.generate(PROMPTS[0], stop_token_ids=stops)) <= len(whole)

    whole, rest, stopped = use(family.model())
    assert whole == PROMPTS[0] + rest
    assert stopped


def test_the_preprocessor_s_length_is_the_default_and_may_change(family):
    def use(model):
        texts = []
        for length in (SEQUENCE_LENGTH, 5):
            model.preprocessor.sequence_length = length
            texts.append(model.generate(PROMPTS[1], stop_token_ids=None))
        return texts

    long, short = use(family.model())
    assert long.startswith(short)
    model = OURS.model()
    for length in (SEQUENCE_LENGTH, 5):
        model.preprocessor.sequence_length = length
        result = model.generate_results(PROMPTS[1], stop_token_ids=None)[0]
        assert result.prompt_tokens + result.generated_tokens == length


def test_tokens_without_a_preprocessor(family):
    ids = np.array([[5, 20, 21, 1, 1, 1, 1, 1], [5, 20, 1, 1, 1, 1, 1, 1]], "int32")
    prompts = {"token_ids": ids, "padding_mask": np.arange(8) < [[3], [2]]}

    def use(model):
        model.preprocessor = None
        batches = tf.data.Dataset.from_tensor_slices(prompts).batch(2)
        found = [model.generate(form, stop_token_ids=None) for form in (dict(prompts), batches)]
        with pytest.raises(ValueError, match="stop_token_ids"):
            model.generate(dict(prompts))
        return [{name: np.asarray(v).astype(int).tolist() for name, v in f.items()} for f in found]

    first, second = use(family.model())
    assert first == second
    assert [row[:n] for row, n in zip(first["token_ids"], (3, 2), strict=True)] == [
        ids[0, :3].tolist(),
        ids[1, :2].tolist(),
    ]
    assert np.all(first["padding_mask"])


@pytest.mark.parametrize("name", ["greedy", "random", "top_k", "top_p", "beam", "contrastive"])
def test_samplers_by_name_and_instance(family, name):
    model = family.model()
    model.compile(sampler=name)
    cls = type(model.sampler)
    assert cls is getattr(family.samplers, cls.__name__)
    config = family.samplers.serialize(model.sampler)
    again = family.samplers.deserialize(config)
    assert type(again) is cls
    assert again.get_config() == model.sampler.get_config()
    model.compile(sampler=again)
    assert model.sampler is again


def test_a_preprocessor_that_is_none_of_ours_trains_and_is_refused_elsewhere(tmp_path):
    from exporter import export_bundle

    model = OURS.model()
    preprocessor = model.preprocessor
    model.preprocessor = lambda texts: preprocessor(texts)[0]
    assert model.predict_on_batch(np.array(TEXTS)).shape[0] == len(TEXTS)
    message = (
        "must be an exporter.OPTCausalLMPreprocessor to generate, save or export, got a builtins.fu"
    )
    for use in (
        lambda: model.generate(" at"),
        lambda: model.save_to_preset(tmp_path / "preset"),
        lambda: model.export_to_transformers(tmp_path / "folder"),
        lambda: export_bundle(model, tmp_path / "bundle"),
    ):
        with pytest.raises(ValueError, match=message):
            use()
    assert not list(tmp_path.iterdir())


# === LoRA ===


def test_lora_is_enabled_without_changing_the_output(family):
    """Two projections a layer; keras-hub's have an A for each head, and trained biases."""
    model = family.model(num_layers=2)
    before = np.asarray(model(INPUTS))
    model.backbone.enable_lora(3)
    assert difference(model(INPUTS), before) == 0
    pairs = [tuple(v.shape) for v in model.trainable_weights if "bias" not in v.path]
    assert pairs == 4 * ([(8, 3), (3, 8)] if family == OURS else [(8, 2, 3), (3, 4)])
    assert len(model.trainable_weights) == (8 if family == OURS else 12)


@pytest.mark.slow
def test_a_model_is_fine_tuned_with_lora(family, tmp_path):
    model = family.model()
    model.backbone.enable_lora(2)
    optimizer = keras.optimizers.AdamW(0.05, weight_decay=0.01)
    optimizer.exclude_from_weight_decay(var_names=["bias", "scale"])
    model.compile(optimizer=optimizer, run_eagerly=True, sampler="greedy")
    losses = model.fit(TEXTS, epochs=2, verbose=0).history["loss"]
    assert losses[1] < losses[0]
    tuned = np.asarray(model(INPUTS))
    assert difference(tuned, family.model()(INPUTS)) > 1e-3

    path = str(tmp_path / "tuned.lora.h5")
    model.backbone.save_lora_weights(path)
    other = family.model()
    other.backbone.load_lora_weights(path)
    if family == OURS:  # keras-hub trains biases too, which are not in the file
        assert difference(other(INPUTS), tuned) < 1e-6

    for name in ("preset", "model.keras", "model.weights.h5"):
        target = str(tmp_path / name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the optimizer's state is of the pairs, now merged
            if name == "preset":
                model.save_to_preset(target)
                loaded = family.models.OPTCausalLM.from_preset(target)
            elif name == "model.keras":
                model.save(target)
                loaded = keras.saving.load_model(target)
            else:
                model.save_weights(target)
                loaded = family.model(seed=1)
                loaded.load_weights(target)
        assert difference(loaded(INPUTS), tuned) < 1e-5, name
        assert len(loaded.trainable_weights) == len(loaded.weights)
