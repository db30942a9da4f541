"""The Keras OPT family: equal to keras-hub's on equal weights, saved and loaded without a change."""

from __future__ import annotations

import json
import shutil

import keras
import numpy as np
import pytest

from exporter import CausalLM, OPTBackbone, OPTCausalLM, OPTCausalLMPreprocessor, OPTTokenizer
from exporter.errors import CheckpointError, PresetError
from exporter.presets.saving import save_causal_lm


def weights_of(model):
    return {v.path: np.asarray(v.value).astype("float32") for v in model.backbone.weights}


def assert_same_weights(found, expected):
    assert set(found) == set(expected)
    for path, values in expected.items():
        np.testing.assert_array_equal(found[path], values, err_msg=path)


def difference(found, expected, mask=None):
    """Maximum absolute difference, where the mask is set."""
    distance = np.abs(np.asarray(found, "float64") - np.asarray(expected, "float64"))
    return float((distance if mask is None else distance[np.asarray(mask, bool)]).max())


# === Against keras-hub and transformers ===


@pytest.mark.reference
def test_hidden_states_equal_keras_hub_s(hub_model, hub_preset, padded_tokens):
    ours = OPTBackbone.from_preset(str(hub_preset))
    expected = np.asarray(hub_model.backbone(padded_tokens))
    assert expected.std() > 0.5
    mask = padded_tokens["padding_mask"]
    assert difference(ours(padded_tokens), expected, mask) <= 1e-5
    # What padding says is nobody's business, but it must not leak into the text before it.
    changed = {
        **padded_tokens,
        "token_ids": np.where(mask, padded_tokens["token_ids"], 7).astype("int32"),
    }
    assert difference(ours(changed), ours(padded_tokens), mask) == 0


@pytest.mark.reference
def test_logits_equal_keras_hub_s(hub_model, hub_preset, padded_tokens):
    ours = OPTCausalLM.from_preset(str(hub_preset))
    expected = np.asarray(hub_model(padded_tokens))
    assert expected.shape == (3, 20, 288)
    mask = padded_tokens["padding_mask"]
    assert difference(ours(padded_tokens), expected, mask) <= 1e-5 * max(1, expected.std())


@pytest.mark.reference
def test_logits_of_shards_equal_keras_hub_s(hub_model, hub_sharded_preset, padded_tokens):
    ours = OPTCausalLM.from_preset(str(hub_sharded_preset))
    mask = padded_tokens["padding_mask"]
    expected = np.asarray(hub_model(padded_tokens))
    assert difference(ours(padded_tokens), expected, mask) <= 1e-5 * max(1, expected.std())


@pytest.mark.reference
@pytest.mark.parametrize("folder", ["hf_folder", "hf_sharded_folder"])
def test_logits_equal_transformers(folder, request, hf_logits, padded_tokens):
    ours = OPTCausalLM.from_preset(str(request.getfixturevalue(folder)))
    expected = hf_logits(padded_tokens["token_ids"], padded_tokens["padding_mask"])
    mask = padded_tokens["padding_mask"]
    assert difference(ours(padded_tokens), expected, mask) <= 1e-5 * max(1, expected.std())


@pytest.mark.reference
def test_the_longest_sequence_equals_transformers(hf_folder, hf_logits, toy_config):
    ours = OPTCausalLM.from_preset(str(hf_folder))
    ids = np.random.default_rng(9).integers(0, 288, (1, toy_config.max_sequence_length))
    tokens = {"token_ids": ids.astype("int32"), "padding_mask": np.ones_like(ids, "int32")}
    expected = hf_logits(ids, np.ones_like(ids))
    assert difference(ours(tokens), expected) <= 1e-5 * max(1, expected.std())


@pytest.mark.reference
def test_keras_hub_reads_what_we_save(keras_hub, toy_model, toy_preset, padded_tokens):
    theirs = keras_hub.models.OPTCausalLM.from_preset(str(toy_preset))
    mask = padded_tokens["padding_mask"]
    expected = np.asarray(toy_model(padded_tokens))
    assert difference(theirs(padded_tokens), expected, mask) <= 1e-5 * max(1, expected.std())
    assert theirs.preprocessor.sequence_length == 32
    assert theirs.preprocessor.tokenizer.vocabulary == toy_model.preprocessor.tokenizer.vocabulary
    assert list(theirs.preprocessor.tokenizer.merges) == toy_model.preprocessor.tokenizer.merges
    assert theirs.backbone.get_config()["dropout"] == 0.0


@pytest.mark.reference
def test_keras_hub_finds_the_class_of_what_we_save(keras_hub, toy_preset):
    for cls, expected in (
        (keras_hub.models.CausalLM, "OPTCausalLM"),
        (keras_hub.models.Backbone, "OPTBackbone"),
        (keras_hub.models.Tokenizer, "OPTTokenizer"),
        (keras_hub.models.CausalLMPreprocessor, "OPTCausalLMPreprocessor"),
    ):
        assert type(cls.from_preset(str(toy_preset))).__name__ == expected


@pytest.mark.reference
def test_a_round_trip_through_our_model_leaves_keras_hub_s_weights_as_they_were(
    keras_hub, hub_model, hub_preset, tmp_path
):
    OPTCausalLM.from_preset(str(hub_preset)).save_to_preset(tmp_path / "ours")
    theirs = keras_hub.models.OPTCausalLM.from_preset(str(tmp_path / "ours"))
    assert_same_weights(weights_of(theirs), weights_of(hub_model))


@pytest.mark.reference
@pytest.mark.parametrize("dtype", ["bfloat16", None])
def test_bfloat16_weights_go_both_ways(keras_hub, build_model, build_hub_model, tmp_path, dtype):
    """In the dtype that is asked for; where none is, in Keras's policy, as keras-hub loads it."""
    table = "embeddings/token_embedding/embeddings"
    build_hub_model(seed=4, dtype="bfloat16").save_to_preset(str(tmp_path / "theirs"))
    build_model(seed=5, dtype="bfloat16").save_to_preset(tmp_path / "ours")
    for name, seed, build in (("theirs", 4, build_hub_model), ("ours", 5, build_model)):
        saved = weights_of(build(seed=seed, dtype="bfloat16"))[table]
        ours = OPTCausalLM.from_preset(str(tmp_path / name), dtype=dtype)
        theirs = keras_hub.models.OPTCausalLM.from_preset(str(tmp_path / name), dtype=dtype)
        for loaded in (ours, theirs):
            assert {v.dtype for v in loaded.backbone.weights} == {dtype or "float32"}
            assert_same_weights({table: weights_of(loaded)[table]}, {table: saved})
        assert ours.backbone.dtype_policy.name == theirs.backbone.dtype_policy.name


@pytest.mark.reference
def test_float16_weights_are_read_by_keras_hub(keras_hub, toy_model, tmp_path):
    save_causal_lm(toy_model, tmp_path / "half", weights_dtype="float16")
    theirs = keras_hub.models.OPTCausalLM.from_preset(str(tmp_path / "half"))
    table = "embeddings/token_embedding/embeddings"
    expected = weights_of(toy_model)[table].astype("float16").astype("float32")
    np.testing.assert_array_equal(weights_of(theirs)[table], expected)


# === Saving and loading ===


def test_saving_and_loading_changes_nothing(toy_model, toy_preset, padded_tokens):
    loaded = OPTCausalLM.from_preset(str(toy_preset))
    assert_same_weights(weights_of(loaded), weights_of(toy_model))
    assert difference(loaded(padded_tokens), toy_model(padded_tokens)) == 0
    assert loaded.backbone.model_config == toy_model.backbone.model_config
    assert loaded.preprocessor.get_config() == toy_model.preprocessor.get_config()
    assert loaded.preprocessor.tokenizer.vocabulary == toy_model.preprocessor.tokenizer.vocabulary
    assert loaded.preprocessor.tokenizer.merges == toy_model.preprocessor.tokenizer.merges


def test_a_saved_preset_has_the_files_of_keras(toy_preset):
    files = {str(path.relative_to(toy_preset)) for path in toy_preset.rglob("*") if path.is_file()}
    assert files == {
        "assets/tokenizer/merges.txt",
        "assets/tokenizer/vocabulary.json",
        "config.json",
        "metadata.json",
        "model.weights.h5",
        "preprocessor.json",
        "task.json",
        "tokenizer.json",
    }
    config = json.loads((toy_preset / "config.json").read_text(encoding="utf-8"))
    assert config["registered_name"] == "keras_hub>OPTBackbone"
    assert config["config"]["hidden_dim"] == 32


def test_from_preset_on_the_base_class_picks_opt(toy_preset):
    assert type(CausalLM.from_preset(str(toy_preset))) is OPTCausalLM
    assert issubclass(OPTCausalLM, CausalLM)


@pytest.mark.parametrize(("dtype", "expected"), [("bfloat16", "bfloat16"), (None, "float32")])
def test_a_model_saved_in_bfloat16_loads_in_what_is_asked_for(build_model, tmp_path, dtype, expected):
    """Without a dtype that is Keras's policy, whatever the preset was saved in, as in keras-hub."""
    model = build_model(seed=6, dtype="bfloat16")
    model.save_to_preset(tmp_path / "p")
    config = json.loads((tmp_path / "p" / "config.json").read_text(encoding="utf-8"))
    assert config["config"]["dtype"]["config"]["name"] == "bfloat16"
    loaded = OPTCausalLM.from_preset(str(tmp_path / "p"), dtype=dtype)
    assert loaded.backbone.dtype_policy.name == loaded.dtype_policy.name == expected
    assert {v.dtype for v in loaded.backbone.weights} == {expected}
    assert_same_weights(weights_of(loaded), weights_of(model))


def test_without_loading_weights_they_are_random(toy_preset, toy_model, padded_tokens):
    loaded = OPTCausalLM.from_preset(str(toy_preset), load_weights=False)
    assert loaded.backbone.model_config == toy_model.backbone.model_config
    kernel = "transformer_layer_0/intermediate/kernel"
    found = weights_of(loaded)[kernel]
    assert 0 < found.std() < 0.05  # Keras's initial values, not the toy's of 0.2
    assert not np.array_equal(found, weights_of(toy_model)[kernel])
    assert OPTBackbone.from_preset(str(toy_preset), load_weights=False).num_layers == 2


def test_without_loading_weights_they_may_be_absent(toy_preset, tmp_path):
    folder = tmp_path / "p"
    shutil.copytree(toy_preset, folder)
    (folder / "model.weights.h5").unlink()
    assert OPTCausalLM.from_preset(str(folder), load_weights=False).preprocessor is not None
    with pytest.raises(CheckpointError, match="has no weights"):
        OPTCausalLM.from_preset(str(folder))


def test_the_configuration_can_be_overridden(toy_preset, toy_model):
    loaded = OPTCausalLM.from_preset(str(toy_preset), dropout=0.5, dtype="bfloat16")
    assert loaded.backbone.dropout == 0.5
    assert {v.dtype for v in loaded.backbone.weights} == {"bfloat16"}
    for layer in loaded.backbone.transformer_layers:
        assert layer.dropout == layer.attention.dropout == 0.5
    for path, values in weights_of(toy_model).items():
        rounded = np.asarray(keras.ops.cast(values, "bfloat16")).astype("float32")
        np.testing.assert_array_equal(weights_of(loaded)[path], rounded)
    mixed = OPTBackbone.from_preset(str(toy_preset), dtype="mixed_bfloat16")
    assert {v.dtype for v in mixed.weights} == {"float32"}
    assert mixed.compute_dtype == "bfloat16"


def test_a_preprocessor_can_be_left_out_or_replaced(toy_preset, toy_tokenizer):
    assert OPTCausalLM.from_preset(str(toy_preset), preprocessor=None).preprocessor is None
    mine = OPTCausalLMPreprocessor(toy_tokenizer, sequence_length=11)
    assert OPTCausalLM.from_preset(str(toy_preset), preprocessor=mine).preprocessor is mine


def test_parts_load_on_their_own(toy_preset, toy_tokenizer):
    preprocessor = OPTCausalLMPreprocessor.from_preset(
        str(toy_preset), sequence_length=12, add_end_token=False
    )
    config = preprocessor.get_config()
    assert (config["sequence_length"], config["add_start_token"]) == (12, True)
    assert config["add_end_token"] is False
    tokenizer = OPTTokenizer.from_preset(str(toy_preset), sequence_length=5)
    np.testing.assert_array_equal(tokenizer(" quick"), [*toy_tokenizer.encode(" quick"), *[1] * 5][:5])


def test_an_unknown_override_is_an_error(toy_preset):
    with pytest.raises((TypeError, ValueError), match="no_such_argument"):
        OPTCausalLM.from_preset(str(toy_preset), no_such_argument=1)


def test_overrides_that_change_sizes_do_not_fit_the_weights(toy_preset):
    with pytest.raises((ValueError, KeyError)):
        OPTBackbone.from_preset(str(toy_preset), hidden_dim=64)


def test_an_unknown_preset(tmp_path):
    with pytest.raises(PresetError, match="no preset 'opt_999b_en'"):
        OPTCausalLM.from_preset("opt_999b_en")


# === Configurations ===


def test_a_backbone_is_its_configuration(toy_model, backbone_sizes, padded_tokens):
    backbone = OPTBackbone(**backbone_sizes, dropout=0.2, dtype="mixed_bfloat16", name="mine")
    config = backbone.get_config()
    assert {name: config[name] for name in backbone_sizes} == backbone_sizes
    assert config["dropout"] == 0.2
    copy = OPTBackbone.from_config(config)
    assert copy.get_config() == config
    assert copy.name == "mine"
    assert copy.compute_dtype == "bfloat16"
    assert [v.path for v in copy.weights] == [v.path for v in backbone.weights]
    json.dumps(config)


def test_a_causal_lm_is_its_configuration(toy_model, padded_tokens):
    config = toy_model.get_config()
    copy = OPTCausalLM.from_config(json.loads(json.dumps(config)))
    assert copy.backbone.model_config == toy_model.backbone.model_config
    for found, value in zip(copy.backbone.variables, toy_model.backbone.variables, strict=True):
        found.assign(value)
    assert difference(copy(padded_tokens), toy_model(padded_tokens)) == 0
    assert toy_model.get_config() == config  # from_config has not eaten the model's own


def test_keras_saves_and_loads_the_model_as_a_file(build_model, tmp_path, padded_tokens):
    model = build_model(seed=7)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is OPTCausalLM
    assert difference(loaded(padded_tokens), model(padded_tokens)) == 0


def test_the_number_of_parameters(toy_model, toy_config):
    assert toy_model.count_params() == toy_model.backbone.count_params() == toy_config.num_parameters


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 5}, r"hidden_dim \(32\) must be a multiple of num_heads \(5\)"),
        ({"num_layers": 0}, "num_layers must be a whole number of at least 1, got 0"),
        ({"vocabulary_size": -1}, "vocabulary_size must be .* got -1"),
        ({"hidden_dim": 32.0}, "hidden_dim must be .* got 32.0"),
        ({"intermediate_dim": None}, "intermediate_dim must be .* got None"),
        ({"max_sequence_length": "64"}, "max_sequence_length must be .* got '64'"),
        ({"num_heads": True}, "num_heads must be .* got True"),
    ],
)
def test_bad_sizes(backbone_sizes, change, message):
    with pytest.raises(ValueError, match=message):
        OPTBackbone(**{**backbone_sizes, **change})


def test_dropout_is_for_training_only(backbone_sizes, padded_tokens):
    backbone = OPTBackbone(**backbone_sizes, dropout=0.5)
    first, second = (np.asarray(backbone(padded_tokens, training=False)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    first, second = (np.asarray(backbone(padded_tokens, training=True)) for _ in range(2))
    assert difference(first, second) > 0


@pytest.mark.parametrize("dtype", ["bfloat16", "mixed_bfloat16", "float16", "mixed_float16"])
def test_narrow_dtypes_compute_nearly_the_same(toy_model, toy_preset, padded_tokens, dtype):
    model = OPTCausalLM.from_preset(str(toy_preset), dtype=dtype)
    tokens = {name: value.copy() for name, value in padded_tokens.items()}
    tokens["padding_mask"][2] = 0  # a row with nothing to look at stays finite
    found, expected = np.asarray(model(tokens)).astype("float32"), np.asarray(toy_model(tokens))
    assert np.isfinite(found).all()
    assert difference(found, expected, tokens["padding_mask"]) < 0.1 * expected.std()


def test_a_later_token_does_not_change_an_earlier_one(toy_model, padded_tokens):
    ones = np.ones_like(padded_tokens["padding_mask"])
    before = np.asarray(toy_model({**padded_tokens, "padding_mask": ones}))
    ids = padded_tokens["token_ids"].copy()
    ids[:, 9] = (ids[:, 9] + 1) % 288
    after = np.asarray(toy_model({"token_ids": ids, "padding_mask": ones}))
    assert difference(before[:, :9], after[:, :9]) == 0
    assert difference(before[:, 9:], after[:, 9:]) > 0.1
