"""`fit`, `evaluate` and `predict` on strings and on tokens, in every form Keras takes them."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from exporter import OPTBackbone, OPTCausalLM
from runtime import samplers

TEXTS = [
    "import the quick brown fox",
    " the fox is quick",
    "import fox",
    " quick quick quick the",
    " the brown fox",
    "import the fox",
    " brown brown",
    " the quick fox is brown",
]


def compile_quick(model, rate=1e-2):
    """Steps large enough to learn a toy text, run eagerly: tracing them takes longer than they do."""
    model.compile(
        optimizer=keras.optimizers.Adam(rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[keras.metrics.SparseCategoricalAccuracy()],
        run_eagerly=True,
    )
    return model


@pytest.fixture(scope="module")
def model(build_model):
    """One model that the tests of this file go on training."""
    return compile_quick(build_model(seed=10))


@pytest.fixture(scope="module")
def tokens(toy_model):
    """`(x, y, sample_weight)` of all texts."""
    return toy_model.preprocessor(TEXTS)


def expected_loss(model, x, y, sample_weight):
    """Cross-entropy of the weighted tokens, computed here; and their accuracy."""
    logits = np.asarray(model(x), "float64")
    logits -= logits.max(axis=-1, keepdims=True)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    losses = -np.take_along_axis(log_probabilities, np.asarray(y)[..., None], axis=-1)[..., 0]
    weight = np.asarray(sample_weight, "float64")
    hits = logits.argmax(axis=-1) == np.asarray(y)
    # Keras divides the loss by all positions and the accuracy by the weights.
    return (losses * weight).sum() / weight.size, (hits * weight).sum() / weight.sum()


# === Compile defaults ===


def test_compile_defaults(build_model):
    model = build_model()
    assert type(model.optimizer) is keras.optimizers.Adam
    assert float(model.optimizer.learning_rate) == pytest.approx(2e-5)
    assert type(model.loss) is keras.losses.SparseCategoricalCrossentropy
    assert model.loss.get_config()["from_logits"] is True
    names = [type(m) for m in model._compile_metrics._user_weighted_metrics]
    assert names == [keras.metrics.SparseCategoricalAccuracy]
    assert type(model.sampler) is samplers.TopKSampler
    assert model.sampler.k == 5


def test_compile_takes_other_choices(build_model):
    model = build_model()
    optimizer, loss = keras.optimizers.SGD(0.5), keras.losses.MeanSquaredError()
    model.compile(optimizer=optimizer, loss=loss, weighted_metrics=None, sampler="greedy")
    assert model.optimizer is optimizer
    assert model.loss is loss
    assert type(model.sampler) is samplers.GreedySampler
    sampler = samplers.TopKSampler(k=2, seed=1)
    model.compile(sampler=sampler)
    assert model.sampler is sampler
    model.compile(sampler={"class_name": "TopKSampler", "config": {"k": 3}})
    assert model.sampler.k == 3
    with pytest.raises(ValueError, match="unknown sampler 'best'"):
        model.compile(sampler="best")


# === Training ===


def test_the_loss_falls_on_strings(model):
    history = model.fit(TEXTS, batch_size=4, epochs=6, verbose=0).history
    assert len(history["loss"]) == 6
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    assert history["sparse_categorical_accuracy"][-1] > history["sparse_categorical_accuracy"][0]


def test_fit_on_a_dataset_of_strings(model):
    data = tf.data.Dataset.from_tensor_slices(TEXTS).batch(4)
    before = model.evaluate(TEXTS, verbose=0, return_dict=True)["loss"]
    steps = int(model.optimizer.iterations)
    history = model.fit(data, epochs=2, verbose=0).history
    assert int(model.optimizer.iterations) == steps + 4
    assert history["loss"][-1] < history["loss"][0]
    assert model.evaluate(data, verbose=0, return_dict=True)["loss"] < before


def test_fit_on_an_array_of_strings(model):
    steps = int(model.optimizer.iterations)
    model.fit(np.array(TEXTS), batch_size=3, verbose=0)
    assert int(model.optimizer.iterations) == steps + 3
    model.fit(tf.constant(TEXTS), batch_size=8, verbose=0)
    assert int(model.optimizer.iterations) == steps + 4


def test_fit_on_tokens_without_a_preprocessor(build_model, tokens):
    model = compile_quick(build_model(seed=11, preprocessor=False))
    x, y, weight = tokens
    history = model.fit(x, y, sample_weight=weight, batch_size=4, epochs=3, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    data = tf.data.Dataset.from_tensor_slices((x, y, weight)).batch(4)
    again = model.fit(data, epochs=1, verbose=0).history
    assert again["loss"][0] < history["loss"][-1]


def test_strings_and_their_tokens_train_the_same(build_model, tokens):
    losses = []
    for preprocessor in (True, False):
        model = compile_quick(build_model(seed=12, preprocessor=preprocessor))
        x, y, weight = (TEXTS, None, None) if preprocessor else tokens
        history = model.fit(
            x, y, sample_weight=weight, batch_size=4, epochs=2, shuffle=False, verbose=0
        )
        losses.append(history.history["loss"])
    np.testing.assert_allclose(losses[0], losses[1], rtol=0, atol=1e-6)


def test_lists_are_shuffled_unless_told_otherwise(build_model, monkeypatch):
    model = build_model(seed=13)
    model.compile(optimizer=keras.optimizers.SGD(0.0), run_eagerly=True)
    seen = []

    step = model.train_step

    def look_on(data):
        seen.append(np.asarray(data[0]["token_ids"]))
        return step(data)

    monkeypatch.setattr(model, "train_step", look_on)

    def order(**options):
        seen.clear()
        model.fit(TEXTS * 4, batch_size=32, verbose=0, **options)
        return np.concatenate(seen)

    plain = model.preprocessor(TEXTS * 4)[0]["token_ids"]
    np.testing.assert_array_equal(order(shuffle=False), plain)
    shuffled = order()
    assert not np.array_equal(shuffled, plain)
    assert sorted(map(tuple, shuffled)) == sorted(map(tuple, plain))


def test_validation_split_keeps_the_last_examples_back(build_model, tokens):
    model = compile_quick(build_model(seed=14), rate=0.0)
    history = model.fit(TEXTS, batch_size=8, validation_split=0.25, shuffle=True, verbose=0).history
    expected, accuracy = expected_loss(model, *(keras.tree.map_structure(lambda a: a[6:], tokens)))
    assert history["val_loss"][0] == pytest.approx(expected, abs=1e-4)
    assert history["val_sparse_categorical_accuracy"][0] == pytest.approx(accuracy, abs=1e-6)
    expected, _ = expected_loss(model, *(keras.tree.map_structure(lambda a: a[:6], tokens)))
    assert history["loss"][0] == pytest.approx(expected, abs=1e-4)


def test_validation_split_of_tokens(build_model, tokens):
    model = compile_quick(build_model(seed=14, preprocessor=False), rate=0.0)
    x, y, weight = tokens
    history = model.fit(
        x, y, sample_weight=weight, batch_size=8, validation_split=0.25, verbose=0
    ).history
    expected, _ = expected_loss(model, *(keras.tree.map_structure(lambda a: a[6:], tokens)))
    assert history["val_loss"][0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("form", ["list", "tuple", "dataset"])
def test_validation_data(model, tokens, form):
    data = {
        "list": TEXTS[:2],
        "tuple": (TEXTS[:2],),
        "dataset": tf.data.Dataset.from_tensor_slices(TEXTS[:2]).batch(2),
    }[form]
    history = model.fit(TEXTS[:4], validation_data=data, batch_size=4, verbose=0).history
    expected, _ = expected_loss(model, *(keras.tree.map_structure(lambda a: a[:2], tokens)))
    assert history["val_loss"][0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_fit_with_the_compile_defaults_changes_the_weights(build_model):
    model = build_model(seed=15)
    before = np.asarray(model.backbone.token_embedding.embeddings.value)
    loss = model.fit(TEXTS[:2], batch_size=2, verbose=0).history["loss"][0]
    assert np.isfinite(loss)
    after = np.asarray(model.backbone.token_embedding.embeddings.value)
    assert 0 < np.abs(after - before).max() < 3e-5  # one step of Adam at 2e-5


def test_a_frozen_backbone_does_not_move(build_model):
    model = compile_quick(build_model(seed=16))
    model.backbone.trainable = False
    before = [np.asarray(v.value) for v in model.backbone.weights]
    compile_quick(model)
    assert model.trainable_variables == []
    model.evaluate(TEXTS[:2], verbose=0)
    for old, variable in zip(before, model.backbone.weights, strict=True):
        np.testing.assert_array_equal(old, np.asarray(variable.value))


def test_training_in_mixed_precision(build_model):
    model = compile_quick(build_model(seed=17, dtype="mixed_bfloat16"))
    history = model.fit(TEXTS, batch_size=8, epochs=3, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert {v.dtype for v in model.backbone.weights} == {"float32"}


# === Evaluation and prediction ===


def test_evaluate_gives_loss_and_accuracy_of_the_text(model, tokens):
    found = model.evaluate(TEXTS, batch_size=8, verbose=0, return_dict=True)
    loss, accuracy = expected_loss(model, *tokens)
    assert found["loss"] == pytest.approx(loss, abs=1e-4)
    assert found["sparse_categorical_accuracy"] == pytest.approx(accuracy, abs=1e-6)
    as_list = model.evaluate(TEXTS, batch_size=8, verbose=0)
    assert as_list == pytest.approx([loss, accuracy], abs=1e-4)


def test_predict_gives_logits(model, tokens):
    expected = np.asarray(model(tokens[0]))
    found = model.predict(TEXTS, batch_size=3, verbose=0)
    assert found.shape == (8, 32, 288)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    data = tf.data.Dataset.from_tensor_slices(TEXTS[:2]).batch(2)
    np.testing.assert_allclose(model.predict(data, verbose=0), expected[:2], rtol=0, atol=1e-4)


def test_one_batch_at_a_time(build_model, tokens):
    model = compile_quick(build_model(seed=18))
    x, y, weight = tokens
    loss, accuracy = expected_loss(model, x, y, weight)
    assert model.test_on_batch(TEXTS) == pytest.approx([loss, accuracy], abs=1e-4)
    logits = np.asarray(model(x))
    np.testing.assert_allclose(model.predict_on_batch(TEXTS), logits, rtol=0, atol=1e-4)
    losses = [float(model.train_on_batch(TEXTS)[0]) for _ in range(4)]
    assert losses[-1] < losses[0]
    bare = compile_quick(OPTCausalLM(model.backbone))
    expected = expected_loss(bare, x, y, weight)
    assert bare.test_on_batch(x, y, weight) == pytest.approx(expected, abs=1e-4)


# === What cannot be trained on ===


@pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])
def test_one_string_is_no_data(model, method):
    with pytest.raises(ValueError, match="got one string; wrap it in a list"):
        getattr(model, method)("import the fox")


@pytest.mark.parametrize("options", [{"batch_size": 2}, {"y": np.zeros(2)}, {"sample_weight": 1}])
def test_a_dataset_has_its_own_batches_and_labels(model, options):
    data = tf.data.Dataset.from_tensor_slices(TEXTS).batch(2)
    with pytest.raises(ValueError, match="leave out y, sample_weight and batch_size"):
        model.fit(data, verbose=0, **options)


@pytest.mark.parametrize("fraction", [1.0, -0.1, 1.5])
def test_a_validation_split_is_a_fraction(model, fraction):
    with pytest.raises(ValueError, match=f"must be between 0 and 1, got {fraction}"):
        model.fit(TEXTS, validation_split=fraction, verbose=0)


def test_a_validation_split_leaves_no_part_empty(model):
    with pytest.raises(ValueError, match=r"validation_split=0\.5 of 1 examples leaves one part empty"):
        model.fit(TEXTS[:1], validation_split=0.5, verbose=0)


def test_a_dataset_is_not_split(model):
    data = tf.data.Dataset.from_tensor_slices(TEXTS).batch(2)
    with pytest.raises(ValueError, match=r"split the tf\.data\.Dataset and pass validation_data"):
        model.fit(data, validation_split=0.5, verbose=0)


def test_an_empty_list_is_an_error(model):
    with pytest.raises(ValueError, match="empty"):
        model.fit([], verbose=0)


def test_strings_need_a_preprocessor(build_model):
    model = compile_quick(build_model(preprocessor=False))
    with pytest.raises(ValueError, match="token_ids"):
        model.fit(TEXTS, batch_size=4, verbose=0)


def test_a_fresh_backbone_learns(backbone_sizes, toy_model):
    """From Keras's own initial values, as a user would begin."""
    keras.utils.set_random_seed(3)
    model = OPTCausalLM(OPTBackbone(**backbone_sizes), preprocessor=toy_model.preprocessor)
    compile_quick(model)
    history = model.fit(TEXTS, batch_size=8, epochs=8, verbose=0).history
    assert history["loss"][-1] < 0.6 * history["loss"][0]
