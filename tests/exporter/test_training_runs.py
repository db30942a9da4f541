"""Training runs: narrow dtypes, callbacks, frozen parts, and a model of the user's own to the end."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from exporter import (
    OPTBackbone,
    OPTCausalLM,
    OPTCausalLMPreprocessor,
    OPTTokenizer,
    export_bundle,
)
from exporter.opt.optimizers import MasterWeightOptimizer
from runtime import Generator

TEXTS = ["import the quick brown fox", " the fox is quick", "import fox", " quick quick quick the"]


def compile_quick(model, rate=1e-2, **options):
    options = {"optimizer": keras.optimizers.Adam(rate), "run_eagerly": True, **options}
    model.compile(sampler="greedy", **options)
    return model


def values_of(model):
    return {v.path: np.array(v.value) for v in model.backbone.weights}


# === Narrow dtypes ===


@pytest.fixture(scope="module")
def float32_losses(build_model):
    model = compile_quick(build_model(seed=40), rate=1e-3)
    return model.fit(TEXTS, batch_size=4, epochs=6, verbose=0).history["loss"]


@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param("float16", marks=pytest.mark.slow),
        pytest.param("bfloat16", marks=pytest.mark.slow),
        "mixed_float16",
        pytest.param("mixed_bfloat16", marks=pytest.mark.slow),
    ],
)
def test_narrow_dtypes_train_like_float32(build_model, float32_losses, padded_tokens, dtype):
    model = compile_quick(build_model(seed=40, dtype=dtype), rate=1e-3)
    inner = model.optimizer
    stored = "float32" if dtype.startswith("mixed") else dtype
    if stored != "float32":
        assert type(inner) is MasterWeightOptimizer
        inner = inner.inner_optimizer
    if dtype.endswith("_float16") or dtype == "float16":
        assert type(inner) is keras.optimizers.LossScaleOptimizer
        inner = inner.inner_optimizer
    assert type(inner) is keras.optimizers.Adam
    assert float(model.optimizer.learning_rate) == pytest.approx(1e-3)

    losses = model.fit(TEXTS, batch_size=4, epochs=6, verbose=0).history["loss"]
    drop = float32_losses[0] - float32_losses[-1]
    assert drop > 0.02
    np.testing.assert_allclose(losses, float32_losses, rtol=0, atol=0.1 * drop)
    assert int(model.optimizer.iterations) == 6
    assert {v.dtype for v in model.backbone.weights} == {stored}
    tokens = {**padded_tokens, "padding_mask": padded_tokens["padding_mask"] * [[1], [1], [0]]}
    assert np.isfinite(np.asarray(model(tokens)).astype("float32")).all()
    assert isinstance(model.generate(" the", max_length=8), str)


def test_scaling_the_loss_can_be_left_to_the_caller(build_model):
    model = build_model(seed=40, dtype="float16")
    model.compile(optimizer=keras.optimizers.Adam(1e-3), auto_scale_loss=False)
    assert type(model.optimizer.inner_optimizer) is keras.optimizers.Adam
    own = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=4.0)
    model.compile(optimizer=own)
    assert model.optimizer.inner_optimizer is own
    mixed = build_model(seed=40, dtype="mixed_float16")
    mixed.compile(optimizer="adam", auto_scale_loss=False)
    assert type(mixed.optimizer) is keras.optimizers.Adam


def test_master_weights_follow_weights_that_are_assigned(build_model):
    """Loading weights between two fits is not undone by the next step."""
    model = compile_quick(build_model(seed=40, dtype="bfloat16"), rate=1e-4)
    model.fit(TEXTS, batch_size=4, verbose=0)
    table = model.backbone.token_embedding.embeddings
    table.assign(np.full(table.shape, 0.5))
    model.fit(TEXTS, batch_size=4, verbose=0)
    assert np.abs(np.array(table.value).astype("float32") - 0.5).max() <= 0.002


def test_small_steps_add_up_in_bfloat16(build_model):
    """Each step is far below the spacing of bfloat16 around 1, eighty of them are not."""
    model = build_model(seed=40, dtype="bfloat16")
    gamma = model.backbone.layer_norm.gamma
    gamma.assign(np.ones(gamma.shape))
    optimizer = MasterWeightOptimizer(keras.optimizers.SGD(1.0))
    for _ in range(80):
        optimizer.apply([np.full(gamma.shape, 1e-3, "float32")], [gamma])
    np.testing.assert_allclose(np.array(gamma.value).astype("float32"), 0.92, rtol=0, atol=0.004)


@pytest.mark.slow
def test_a_narrow_model_exports_in_float32(quick_tracing, build_model, tmp_path):
    model = compile_quick(build_model(seed=40, dtype="bfloat16"))
    model.fit(TEXTS, batch_size=4, epochs=2, verbose=0)
    export_bundle(model, tmp_path / "bundle", verify="full")


# === Callbacks and freezing ===


@pytest.mark.slow
def test_generation_between_epochs_sees_the_new_weights(build_model):
    model = compile_quick(build_model(seed=41))
    written, decoders = [], []

    def write(epoch, logs):
        written.append(model.generate("import", max_length=12))
        decoders.append(model._decoder)

    on_epoch_end = keras.callbacks.LambdaCallback(on_epoch_end=write)
    model.fit([TEXTS[0]] * 2, batch_size=2, epochs=14, callbacks=[on_epoch_end], verbose=0)
    assert written[0] != written[-1]
    assert written[-1].startswith("import the quick")
    assert len(set(map(id, decoders))) == 1
    step = model._decoder._step
    traced = step.experimental_get_tracing_count()
    model.compile(sampler="top_k", run_eagerly=True)
    model.generate("import", max_length=12)
    assert model._decoder._step is step
    assert step.experimental_get_tracing_count() == traced


def test_a_frozen_backbone_stays(build_model):
    model = build_model(seed=42)
    model.backbone.trainable = False
    compile_quick(model)
    before = values_of(model)
    with pytest.warns(UserWarning, match="does not have any trainable weights"):
        model.fit(TEXTS, batch_size=4, verbose=0)
    for path, value in values_of(model).items():
        np.testing.assert_array_equal(value, before[path])


def test_a_frozen_layer_stays(build_model):
    model = build_model(seed=42)
    model.backbone.transformer_layers[0].trainable = False
    compile_quick(model)
    before = values_of(model)
    model.fit(TEXTS, batch_size=4, verbose=0)
    for path, value in values_of(model).items():
        moved = np.abs(value - before[path]).max() > 0
        assert moved == (not path.startswith("transformer_layer_0/")), path


@pytest.mark.slow
def test_schedules_checkpoints_and_early_stopping(build_model, tmp_path):
    model = build_model(seed=43)
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([2], [1e-2, 0.0])
    compile_quick(model, optimizer=keras.optimizers.Adam(schedule))
    path = tmp_path / "{epoch}.weights.h5"
    history = model.fit(
        TEXTS,
        batch_size=4,
        epochs=9,
        verbose=0,
        callbacks=[
            keras.callbacks.ModelCheckpoint(path, save_weights_only=True),
            keras.callbacks.EarlyStopping(monitor="loss", patience=2, min_delta=1e-4),
        ],
    ).history
    # Three steps at 1e-2; their last loss is seen an epoch later, then nothing moves any more.
    assert len(history["loss"]) == 6
    assert history["loss"][3] < history["loss"][2] < history["loss"][0]
    assert history["loss"][3] == pytest.approx(history["loss"][5], abs=1e-6)
    restored = build_model(seed=1)
    restored.load_weights(tmp_path / "6.weights.h5")
    for path, value in values_of(model).items():
        np.testing.assert_array_equal(values_of(restored)[path], value)


# === A model of the user's own ===


@pytest.mark.slow
def test_the_documentation_s_custom_model_trains_and_exports(quick_tracing, tmp_path):
    """Its vocabulary needs OPT's special tokens; keras-hub refuses its gaps too, which count here."""
    keras.utils.set_random_seed(0)
    features = ["a quick fox.", "a fox quick."]
    vocabulary = {"<pad>": 1, "</s>": 2, "a": 4, "Ġquick": 5, "Ġfox": 6}
    merges = ["Ġ q", "u i", "c k", "ui ck", "Ġq uick"]
    merges += ["Ġ f", "o x", "Ġf ox"]

    tokenizer = OPTTokenizer(vocabulary=vocabulary, merges=merges)
    preprocessor = OPTCausalLMPreprocessor(tokenizer=tokenizer, sequence_length=16)
    backbone = OPTBackbone(
        vocabulary_size=288,
        num_layers=2,
        num_heads=4,
        hidden_dim=32,
        intermediate_dim=64,
        max_sequence_length=64,
        dropout=0.0,
    )
    opt_lm = OPTCausalLM(backbone=backbone, preprocessor=preprocessor)
    compile_quick(opt_lm)
    losses = opt_lm.fit(x=features[:1], batch_size=1, epochs=25, verbose=0).history["loss"]
    assert losses[-1] < 0.2 * losses[0]
    written = opt_lm.generate("a", max_length=8)
    assert written == "a quick fox"

    export_bundle(opt_lm, tmp_path / "bundle", verify="none")
    generator = Generator.from_bundle(tmp_path / "bundle")
    assert generator.generate("a", max_length=8) == written
    tokens = {
        "token_ids": np.array([[2, 4, 1, 1, 1, 1]]),
        "padding_mask": np.array([[1, 1, 0, 0, 0, 0]]),
    }
    expected = opt_lm.generate("a", max_length=6)
    assert generator.generate("a", max_length=6) == expected
    opt_lm.preprocessor = None
    found = opt_lm.generate(tokens, stop_token_ids=None)["token_ids"]
    assert found[0, :4].tolist() == [2, 4, 5, 6]
