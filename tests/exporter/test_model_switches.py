"""Our own Keras model with other switches than OPT's: cache, training, saving, and a live export."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from exporter import OPTBackbone, OPTCausalLM, export_bundle
from exporter.opt.keras_decoder import KerasDecoder
from runtime import Generator
from tests.exporter.conftest import TOY, randomize_keras

MODELS = {
    "opt-350m": replace(TOY, embedding_dim=16, norm_first=False, final_norm=False),
    "galactica": replace(TOY, activation="gelu", use_bias=False, norm_affine=False),
    # What no published model has, in as many ways as one model can.
    "other": replace(
        TOY, activation="silu", norm_first=False, embedding_dim=48, use_bias=False, tied_head=False
    ),
    "untied": replace(TOY, activation="gelu_tanh", final_norm=False, tied_head=False),
}


def build(config, dtype=None, seed=5):
    backbone = OPTBackbone.from_sizes(config, dropout=0.0, dtype=dtype)
    randomize_keras(backbone, seed)
    return OPTCausalLM(backbone)


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    found = build(MODELS[request.param])
    found.compile(sampler="greedy")
    return found


def logits(model, token_ids):
    token_ids = np.asarray(token_ids, "int32")
    found = model({"token_ids": token_ids, "padding_mask": np.ones_like(token_ids)}, training=False)
    return np.asarray(found)


def pack(rows, length):
    """A token dictionary of ragged rows."""
    token_ids, mask = np.ones((len(rows), length), "int32"), np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        token_ids[i, : len(row)], mask[i, : len(row)] = row, True
    return {"token_ids": token_ids, "padding_mask": mask}


# === The cache ===


def test_the_cache_gives_the_logits_and_states_of_the_full_pass(model):
    """Ragged rows, appended in pieces: prompts, several tokens after a past, single tokens."""
    config = model.backbone.model_config
    decoder = KerasDecoder(model.backbone)
    rows = np.random.default_rng(0).integers(0, 288, (3, 30))
    expected = logits(model, rows)
    mask = np.ones_like(rows, "int32")
    states = model.backbone({"token_ids": rows.astype("int32"), "padding_mask": mask})
    assert states.shape == (3, 30, config.embedding_width)
    cache = decoder.new_cache(3, 40)
    for lengths in ([7, 1, 12], [4, 6, 2], [1, 1, 1], [1, 0, 1], [5, 9, 1]):
        lengths = np.array(lengths, np.int32)
        done = cache.lengths.copy()
        ids = np.zeros((3, lengths.max()), np.int64)
        for i, n in enumerate(lengths):
            ids[i, :n] = rows[i, done[i] : done[i] + n]
        output = decoder.append(cache, ids, lengths, hidden_states=True)
        assert output.hidden_states.shape == (3, lengths.max(), config.embedding_width)
        for i in np.flatnonzero(lengths):
            difference = np.abs(output.logits[i] - expected[i, cache.lengths[i] - 1]).max()
            assert difference < 1e-4 * expected.std()
            new = np.asarray(states)[i, done[i] : cache.lengths[i]]
            difference = np.abs(output.hidden_states[i, : lengths[i]] - new).max()
            assert difference < 1e-4 * new.std()


def test_generate_equals_the_full_pass(model, greedy):
    prompts = [[2, 5, 6, 7, 9], [11], [3, 200, 41]]
    expected = greedy(model, prompts, 20)
    assert len({tuple(row[-10:]) for row in expected}) == 3
    found = model.generate(pack(prompts, 20), stop_token_ids=None)["token_ids"].tolist()
    assert found == expected
    for prompt, row in zip(prompts, expected, strict=True):
        assert model.generate(pack([prompt], 20), stop_token_ids=None)["token_ids"].tolist() == [row]


# === The model ===


def test_sizes_and_parts(model):
    backbone, config = model.backbone, model.backbone.model_config
    assert backbone.count_params() == config.num_parameters
    assert (backbone.layer_norm is not None) is config.final_norm
    assert (backbone.project_out is not None) is (config.embedding_dim is not None)
    assert (backbone.head is backbone.token_embedding) is config.tied_head
    has_bias = any(variable.path.endswith("bias") for variable in backbone.variables)
    assert has_bias is config.use_bias
    scales = [v for v in backbone.variables if v.path.endswith("gamma")]
    assert len(scales) == (4 + config.final_norm) * config.norm_affine


def test_a_configuration_makes_the_same_model(model):
    again = OPTBackbone.from_config(model.backbone.get_config())
    assert again.model_config == model.backbone.model_config
    again.set_weights(model.backbone.get_weights())
    token_ids = np.arange(10)[None]
    np.testing.assert_array_equal(logits(OPTCausalLM(again), token_ids), logits(model, token_ids))


def test_a_saved_preset_is_the_same_model(model, tmp_path):
    model.save_to_preset(tmp_path / "preset")
    again = OPTCausalLM.from_preset(str(tmp_path / "preset"))
    assert again.backbone.model_config == model.backbone.model_config
    for ours, theirs in zip(model.backbone.variables, again.backbone.variables, strict=True):
        assert ours.path == theirs.path
        np.testing.assert_array_equal(ours.value, theirs.value)


def test_the_activation_is_the_layer_s_only_difference():
    """The same weights under every activation give other logits; dtypes stay what they were."""
    token_ids = np.arange(12)[None]
    found = {}
    for activation in ("relu", "gelu", "gelu_tanh", "silu"):
        found[activation] = logits(build(replace(TOY, activation=activation)), token_ids)
        assert found[activation].dtype == np.float32
    close = np.abs(found["gelu"] - found["gelu_tanh"]).max()
    assert 1e-5 < close < 0.1 * np.abs(found["gelu"] - found["relu"]).max()
    assert np.abs(found["silu"] - found["relu"]).max() > 0.1


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("mixed_float16", marks=pytest.mark.slow)])
def test_narrow_dtypes(model, dtype):
    config = model.backbone.model_config
    narrow = build(config, dtype=dtype)
    token_ids = np.random.default_rng(1).integers(0, 288, (2, 12))
    expected, found = logits(model, token_ids), logits(narrow, token_ids).astype("float32")
    assert np.abs(found - expected).max() < 0.3 * expected.std()
    narrow.compile(sampler="greedy")
    assert narrow.generate(pack([[2, 5]], 8), stop_token_ids=None)["padding_mask"].all()


def test_training_reaches_every_weight(model):
    import keras

    trained = build(model.backbone.model_config)
    trained.compile(optimizer=keras.optimizers.SGD(0.1), run_eagerly=True)
    before = [np.asarray(variable.value).copy() for variable in trained.backbone.variables]
    token_ids = np.random.default_rng(2).integers(0, 288, (2, 65))
    tokens = {"token_ids": token_ids[:, :-1], "padding_mask": np.ones((2, 64), "int32")}
    trained.train_on_batch(tokens, token_ids[:, 1:])
    for variable, old in zip(trained.backbone.variables, before, strict=True):
        assert np.isfinite(variable.value).all()
        assert (np.asarray(variable.value) != old).any(), variable.path


# === The bundle ===


@pytest.mark.parametrize("name", ["other"])
def test_a_live_export(name, tmp_path, greedy):
    model = build(MODELS[name])
    summary = export_bundle(model, tmp_path / "b", verify="full")
    assert summary.comparison.difference < 1e-4
    generator = Generator.from_bundle(tmp_path / "b", threads=1)
    generator.compile("greedy")
    prompts = [[2, 5, 6, 7, 9], [11], [3, 200, 41]]
    found = generator.generate(pack(prompts, 20), stop_token_ids=None)["token_ids"].tolist()
    assert found == greedy(model, prompts, 20)
