"""Keras's guides on transfer learning, training loops and callbacks, with the OPT family in place."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf

from exporter import OPTBackbone, OPTCausalLM
from tests.conformance.airports import difference
from tests.conformance.guide_models import TEXTS, Family, tokens

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning",
    "ignore:`shuffle=True` was passed",  # keras-hub's own call of fit
)

OURS = Family.of("exporter")
INPUTS = tokens()


def names(variables):
    """The layers that variables are of, each once, by their first name."""
    return list(dict.fromkeys(v.path.partition("/")[0] for v in variables))


# === Transfer learning ===


def test_a_backbone_made_frozen_is_frozen_in_functional_models(family):
    backbone = family.backbone(trainable=False)
    model = keras.Model(backbone.input, keras.layers.Dense(2, name="new")(backbone.output))
    assert names(model.trainable_weights) == ["new"]
    causal_lm = family.models.OPTCausalLM(family.backbone(), trainable=False)
    assert not causal_lm.backbone.trainable
    assert causal_lm.trainable_weights == []
    assert keras.Model(causal_lm.input, causal_lm.output).trainable_weights == []


def test_presets_are_loaded_frozen(family, tmp_path):
    family.model().save_to_preset(str(tmp_path))
    backbone = family.models.OPTBackbone.from_preset(str(tmp_path), trainable=False)
    assert keras.Model(backbone.input, backbone.output).trainable_weights == []
    model = family.models.OPTCausalLM.from_preset(str(tmp_path), trainable=False)
    assert model.trainable_weights == []


def test_layers_are_frozen_trained_around_and_unfrozen(family):
    model = family.model(num_layers=2)
    backbone = model.backbone
    backbone.embeddings.trainable = False
    backbone.transformer_layers[0].trainable = False
    assert names(model.trainable_weights) == ["transformer_layer_1", "layer_norm"]
    model.compile(optimizer=keras.optimizers.Adam(0.1), run_eagerly=True)
    before = [np.array(v) for v in model.weights]
    model.fit(TEXTS, verbose=0)
    for variable, values in zip(model.weights, before, strict=True):
        assert (difference(variable, values) > 0) == variable.trainable, variable.path
    backbone.trainable = False
    assert model.trainable_weights == []
    backbone.trainable = True
    assert len(model.trainable_weights) == len(model.weights)


# === Training loops ===


class OwnStep(OPTCausalLM):
    """With the training step of Keras's guide on customizing `fit`."""

    def train_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            logits = self(x, training=True)
            loss = self.compute_loss(y=y, y_pred=logits, sample_weight=sample_weight)
        gradients = tape.gradient(loss, self.trainable_weights)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss)
            else:
                metric.update_state(y, logits, sample_weight=sample_weight)
        return {metric.name: metric.result() for metric in self.metrics}


def test_a_train_step_of_one_s_own_trains_as_keras_s():
    models = [OURS.model(), OwnStep(OURS.backbone(), OURS.preprocessor())]
    for model in models:
        model.compile(optimizer=keras.optimizers.SGD(0.5), run_eagerly=True)
        history = model.fit(TEXTS, epochs=2, verbose=0, shuffle=False).history
        assert history["loss"][1] < history["loss"][0]
        assert set(history) == {"loss", "sparse_categorical_accuracy"}
    for found, expected in zip(*(model.weights for model in models), strict=True):
        assert difference(found, expected) < 1e-6


def test_a_loop_from_scratch(family):
    model = family.model()
    x, y, sample_weight = model.preprocessor(TEXTS)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.SGD(0.5)
    losses = []
    for _ in range(3):
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True), sample_weight=sample_weight)
        gradients = tape.gradient(loss, model.trainable_weights)
        assert all(gradient is not None for gradient in gradients)
        optimizer.apply(gradients, model.trainable_weights)
        losses.append(float(loss))
    assert losses[2] < losses[1] < losses[0]


def test_a_stateless_call_takes_the_weights_as_arguments(family):
    model, other = family.model(), family.model(seed=1)
    values = [v.value for v in model.trainable_variables]
    found, _ = other.stateless_call(values, other.non_trainable_variables, INPUTS)
    assert difference(found, model(INPUTS)) == 0
    assert difference(other(INPUTS), model(INPUTS)) > 0.01


def test_gradients_are_accumulated(family):
    """Two halves of a batch make the step of the whole one."""
    whole, halves = family.model(), family.model()
    whole.compile(optimizer=keras.optimizers.SGD(0.5), run_eagerly=True)
    steps = keras.optimizers.SGD(0.5, gradient_accumulation_steps=2)
    halves.compile(optimizer=steps, run_eagerly=True)
    before = [np.array(v) for v in halves.weights]
    x = whole.preprocessor(TEXTS)
    batch = [
        keras.tree.map_structure(lambda a, n=n: np.asarray(a)[2 * n : 2 * n + 2], x) for n in (0, 1)
    ]
    whole.preprocessor = halves.preprocessor = None
    whole.train_on_batch(*x)
    halves.train_on_batch(*batch[0])
    assert max(difference(v, values) for v, values in zip(halves.weights, before, strict=True)) == 0
    halves.train_on_batch(*batch[1])
    for found, expected in zip(halves.weights, whole.weights, strict=True):
        assert difference(found, expected) < 1e-5


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "adamw", "loss": "sparse_categorical_crossentropy", "weighted_metrics": None},
        {"optimizer": keras.optimizers.Lion(1e-3, clipnorm=1.0, use_ema=True), "metrics": ["accuracy"]},
        pytest.param({"steps_per_execution": 2, "run_eagerly": False}, marks=pytest.mark.slow),
    ],
)
def test_what_compile_takes(options):
    model = OURS.model()
    model.compile(**{"run_eagerly": True, **options})
    assert np.isfinite(model.fit(TEXTS, batch_size=2, verbose=0).history["loss"]).all()


@pytest.mark.slow
def test_training_is_compiled_by_xla():
    plain, compiled = OURS.model(), OURS.model()
    plain.compile(optimizer=keras.optimizers.SGD(0.1), run_eagerly=True)
    compiled.compile(optimizer=keras.optimizers.SGD(0.1), jit_compile=True)
    losses = [m.fit(TEXTS, verbose=0, shuffle=False).history["loss"][0] for m in (plain, compiled)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# === Callbacks ===


def test_callbacks(tmp_path):
    model = OURS.model()
    model.compile(optimizer=keras.optimizers.Adam(0.05), sampler="greedy", run_eagerly=True)
    callbacks = [
        keras.callbacks.EarlyStopping("loss", patience=3, restore_best_weights=True),
        keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", save_best_only=True),
        keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.weights.h5", save_weights_only=True),
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2),
        keras.callbacks.ReduceLROnPlateau("loss", patience=9),
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        keras.callbacks.TerminateOnNaN(),
    ]
    options = {"batch_size": 4, "verbose": 0, "callbacks": callbacks, "validation_data": (TEXTS[:2],)}
    history = model.fit(TEXTS, epochs=2, **options).history
    assert history["learning_rate"] == pytest.approx([0.025, 0.0125])
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 3
    best = keras.saving.load_model(tmp_path / "best.keras")
    assert best.evaluate(TEXTS[:2], verbose=0)[0] == pytest.approx(min(history["val_loss"]), rel=1e-5)
    other = OURS.model(seed=1)
    other.load_weights(tmp_path / "2.weights.h5")
    assert difference(other(INPUTS), model(INPUTS)) == 0


@pytest.mark.slow
def test_training_that_was_interrupted_goes_on(tmp_path):
    def stop(epoch, logs):
        raise KeyboardInterrupt

    def train(model, *more):
        model.compile(optimizer=keras.optimizers.Adam(0.05), run_eagerly=True)
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        return model.fit(
            TEXTS, epochs=2, batch_size=4, verbose=0, shuffle=False, callbacks=[backup, *more]
        )

    with pytest.raises(KeyboardInterrupt):
        train(
            OURS.model(), keras.callbacks.LambdaCallback(on_epoch_begin=lambda e, _: e and stop(e, _))
        )
    resumed, whole = OURS.model(seed=5), OURS.model()
    assert train(resumed).epoch == [1]
    whole.compile(optimizer=keras.optimizers.Adam(0.05), run_eagerly=True)
    whole.fit(TEXTS, epochs=2, batch_size=4, verbose=0, shuffle=False)
    assert difference(resumed(INPUTS), whole(INPUTS)) < 1e-5


# === Sequences that are too long ===


def test_sequences_longer_than_the_positions_are_refused():
    model = OPTCausalLM(OURS.backbone(), OURS.preprocessor(length=9))
    message = "the preprocessor's sequence_length is 9, more than the model's 8 positions"
    for use in (model.fit, model.evaluate, model.predict, model.train_on_batch, model.predict_on_batch):
        with pytest.raises(ValueError, match=message):
            use(TEXTS)
    assert model.generate(" at").startswith(" at")  # up to the positions
    for part in (model, model.backbone):
        with pytest.raises(ValueError, match="the length of token_ids is 9, more than the model's 8"):
            part(tokens(length=9))
    model.preprocessor.sequence_length = 8
    assert model.predict_on_batch(TEXTS).shape[:2] == (4, 8)


# === Distribution ===

_TWO_DEVICES = """
    import tensorflow as tf

    device = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(device, [tf.config.LogicalDeviceConfiguration()] * 2)
    import keras
    from tests.conformance.airports import difference
    from tests.conformance.guide_models import TEXTS, Family

    ours = Family.of("exporter")
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    plain = ours.model()
    plain.compile(optimizer=keras.optimizers.SGD(0.1), sampler="greedy")
    with strategy.scope():
        model = ours.model()
        model.compile(optimizer=keras.optimizers.SGD(0.1), sampler="greedy")
    options = {"batch_size": 4, "epochs": 2, "verbose": 0, "shuffle": False}
    losses = [m.fit(TEXTS, **options).history["loss"] for m in (plain, model)]
    assert max(abs(a - b) for a, b in zip(*losses)) < 1e-4, losses
    assert difference(model.predict(TEXTS, verbose=0), plain.predict(TEXTS, verbose=0)) < 1e-4
    assert model.generate(" at", max_length=8) == plain.generate(" at", max_length=8)
    print("both")
"""


@pytest.mark.slow
def test_a_mirrored_strategy_trains_as_one_device(repository):
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_TWO_DEVICES)],
        cwd=repository,
        capture_output=True,
        text=True,
    )
    assert child.stdout.split()[-1:] == ["both"], child.stderr


def test_a_class_of_one_s_own_has_the_family_s_presets():
    assert OwnStep.presets.keys() == OPTBackbone.presets.keys()
    assert type(OwnStep.from_preset("opt_tiny_en", load_weights=False)) is OwnStep
