"""Low-rank adaptation: what is trained, saved, loaded, merged and refused."""

from __future__ import annotations

import h5py
import keras
import numpy as np
import pytest

from exporter import OPTBackbone, OPTCausalLM, export_bundle
from exporter.errors import CheckpointError
from exporter.model_weights import LiveWeights
from exporter.opt.lora import TARGETS, adapted_layers, low_rank_variables
from runtime import Generator

LAYERS, HIDDEN, INNER = 2, 32, 64  # of the toy models
QKV = "transformer_layer_0/attention/qkv"
FIRST_NAMES = [f"{QKV}/lora_{part}_{side}" for part in ("query", "value") for side in "ab"]
TEXTS = ["import the quick brown fox", " the fox is quick", " quick quick the", " brown fox"]


def compile_quick(model, rate=1e-2):
    model.compile(optimizer=keras.optimizers.Adam(rate), sampler="greedy", run_eagerly=True)
    return model


def weights_of(model):
    return {
        path: LiveWeights(model.backbone).value(path) for path in LiveWeights(model.backbone).shapes
    }


def stored(model):
    """The frozen weights as their variables hold them, without the pairs."""
    pairs = {id(v) for v in low_rank_variables(model.backbone).values()}
    return {v.path: np.array(v.value) for v in model.backbone.weights if id(v) not in pairs}


def randomize_pairs(model, seed=5):
    generator = np.random.default_rng(seed)
    for variable in low_rank_variables(model.backbone).values():
        variable.assign(generator.normal(0, 0.3, variable.shape))
    return model


def difference(found, expected):
    return float(np.abs(np.asarray(found, "float64") - np.asarray(expected, "float64")).max())


@pytest.fixture
def adapted(build_model):
    """A toy model with pairs of rank 3, alpha 6 and random values."""
    model = build_model(seed=20)
    model.backbone.enable_lora(3, alpha=6)
    compile_quick(model)
    return randomize_pairs(model)


# === What is trained ===


def test_enabling_changes_no_output(build_model, padded_tokens):
    model = build_model(seed=20)
    before = np.asarray(model(padded_tokens))
    model.backbone.enable_lora(4)
    np.testing.assert_array_equal(np.asarray(model(padded_tokens)), before)


@pytest.mark.parametrize(
    ("names", "matrices"),
    [
        (None, {"query": (HIDDEN, HIDDEN), "value": (HIDDEN, HIDDEN)}),
        (["query_dense", "value_dense", "query", "value"], {"query": (32, 32), "value": (32, 32)}),
        (["key"], {"key": (HIDDEN, HIDDEN)}),
        (["attention_output"], {"attention_output": (HIDDEN, HIDDEN)}),
        (["feedforward_intermediate_dense"], {"feedforward_intermediate_dense": (HIDDEN, INNER)}),
        (
            list(TARGETS),
            {name: (HIDDEN, HIDDEN) for name in list(TARGETS)[:4]}
            | {"intermediate": (HIDDEN, INNER), "output": (INNER, HIDDEN)},
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("rank", [1, 4])
def test_the_number_of_trainable_parameters(build_model, names, matrices, rank):
    """The paper's count: for each adapted matrix [in, out], rank x (in + out)."""
    model = build_model(seed=20)
    model.backbone.enable_lora(rank, target_layer_names=names)
    expected = LAYERS * sum(rank * (rows + columns) for rows, columns in matrices.values())
    found = model.trainable_variables
    assert sum(int(np.prod(v.shape)) for v in found) == expected
    assert {id(v) for v in found} == {id(v) for v in low_rank_variables(model.backbone).values()}
    assert {v.dtype for v in found} == {"float32"}


def test_training_moves_the_pairs_and_nothing_else(build_model):
    model = build_model(seed=20)
    model.backbone.enable_lora(4)
    compile_quick(model)
    frozen = stored(model)
    pairs = {n: np.array(v.value) for n, v in low_rank_variables(model.backbone).items()}
    losses = model.fit(TEXTS, batch_size=4, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0] - 0.05
    for path, values in stored(model).items():
        np.testing.assert_array_equal(values, frozen[path], err_msg=path)
    for name, variable in low_rank_variables(model.backbone).items():
        assert difference(variable.value, pairs[name]) > 1e-3, name


def test_weight_paths_stay_as_they_were(build_model):
    plain, model = build_model(seed=20), build_model(seed=20)
    shapes = LiveWeights(plain.backbone).shapes
    model.backbone.enable_lora(4)
    assert LiveWeights(model.backbone).shapes == shapes
    assert f"{QKV}/kernel" in shapes
    assert list(low_rank_variables(model.backbone))[:4] == FIRST_NAMES
    assert list(adapted_layers(model.backbone)) == [
        f"transformer_layer_{i}/attention/qkv/kernel" for i in range(LAYERS)
    ]


@pytest.mark.parametrize("dtype", ["bfloat16", "mixed_float16"])
def test_narrow_models_have_float32_pairs(build_model, dtype):
    model = build_model(seed=20, dtype=dtype)
    model.backbone.enable_lora(4)
    compile_quick(model)
    losses = model.fit(TEXTS, batch_size=4, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0] - 0.05
    assert {v.dtype for v in low_rank_variables(model.backbone).values()} == {"float32"}
    assert {str(v.dtype) for v in stored(model).values()} == {
        "bfloat16" if dtype == "bfloat16" else "float32"
    }


# === Merging ===


def test_a_merged_model_computes_the_same(adapted, build_model, padded_tokens):
    kernel = stored(adapted)[f"{QKV}/kernel"].astype("float64")
    pairs = {n: np.array(v.value, "float64") for n, v in low_rank_variables(adapted.backbone).items()}
    for third, part in ((0, "query"), (2, "value")):
        product = pairs[f"{QKV}/lora_{part}_a"] @ pairs[f"{QKV}/lora_{part}_b"]
        kernel[:, third * HIDDEN : (third + 1) * HIDDEN] += 6 / 3 * product
    merged = weights_of(adapted)
    assert difference(merged[f"{QKV}/kernel"], kernel) < 1e-6

    plain = build_model(seed=20)
    assert difference(plain(padded_tokens), adapted(padded_tokens)) > 0.1
    for variable in plain.backbone.weights:
        variable.assign(merged[variable.path])
    assert difference(plain(padded_tokens), adapted(padded_tokens)) < 2e-5


def test_generation_sees_the_pairs(build_model, greedy):
    model = compile_quick(build_model(seed=20))
    prompt = {
        "token_ids": np.array([[5, 9, 70, *[1] * 12]]),
        "padding_mask": np.array([[1] * 3 + [0] * 12]),
    }
    model.preprocessor = None
    before = model.generate(prompt, stop_token_ids=None)["token_ids"].tolist()
    model.backbone.enable_lora(3, alpha=6)
    assert model.generate(prompt, stop_token_ids=None)["token_ids"].tolist() == before
    decoder = model._decoder
    randomize_pairs(model)
    after = model.generate(prompt, stop_token_ids=None)["token_ids"].tolist()
    assert after == greedy(model, [[5, 9, 70]], 15) != before
    assert model._decoder is decoder  # traced once for the adapted layers


def test_bundles_and_presets_are_merged(quick_tracing, adapted, tmp_path, padded_tokens):
    export_bundle(adapted, tmp_path / "bundle", verify="none")
    generator = Generator.from_bundle(tmp_path / "bundle")
    assert generator.generate(" the quick", max_length=24) == adapted.generate(" the quick", 24)

    adapted.save_to_preset(tmp_path / "preset")
    loaded = OPTCausalLM.from_preset(str(tmp_path / "preset"))
    assert loaded.backbone.lora is None
    for path, values in weights_of(adapted).items():
        np.testing.assert_array_equal(weights_of(loaded)[path], values, err_msg=path)
    assert difference(loaded(padded_tokens), adapted(padded_tokens)) < 2e-5


def test_keras_s_weight_files_hold_merged_kernels(adapted, build_model, tmp_path, padded_tokens):
    expected = np.asarray(adapted(padded_tokens))
    adapted.save_weights(tmp_path / "model.weights.h5")
    plain = build_model(seed=1)
    plain.load_weights(tmp_path / "model.weights.h5")
    assert difference(plain(padded_tokens), expected) < 2e-5
    adapted.load_weights(tmp_path / "model.weights.h5")  # the pairs begin anew on what they made
    assert difference(adapted(padded_tokens), expected) < 2e-5
    for name, variable in low_rank_variables(adapted.backbone).items():
        assert bool(np.any(np.asarray(variable.value))) == name.endswith("_a")


# === The adapter's file ===


def test_an_adapter_is_saved_and_loaded_alone(adapted, build_model, tmp_path, padded_tokens):
    path = tmp_path / "style.lora.h5"
    adapted.backbone.save_lora_weights(path)
    with h5py.File(path) as file:
        assert (int(file.attrs["rank"]), float(file.attrs["alpha"])) == (3, 6.0)
        assert list(file.attrs["targets"]) == ["query", "value"]
        assert sorted(file[QKV]) == [name.rsplit("/", 1)[1] for name in FIRST_NAMES]
        assert file[FIRST_NAMES[1]].shape == (3, HIDDEN)
    assert path.stat().st_size < 30_000

    fresh = build_model(seed=20)
    fresh.backbone.load_lora_weights(path)
    assert fresh.backbone.lora == adapted.backbone.lora
    np.testing.assert_array_equal(fresh(padded_tokens), adapted(padded_tokens))
    enabled = build_model(seed=20)
    enabled.backbone.enable_lora(3, alpha=6)
    enabled.backbone.load_lora_weights(str(path))
    np.testing.assert_array_equal(enabled(padded_tokens), adapted(padded_tokens))


def test_an_adapter_of_other_settings_is_refused_and_changes_nothing(adapted, build_model, tmp_path):
    path = tmp_path / "a.lora.h5"
    adapted.backbone.save_lora_weights(path)
    other = build_model(seed=20)
    other.backbone.enable_lora(2, target_layer_names=["query", "key"])
    before = {n: np.array(v.value) for n, v in low_rank_variables(other.backbone).items()}
    with pytest.raises(CheckpointError) as error:
        other.backbone.load_lora_weights(path)
    for part in (
        "rank is 3 in the file and 2 in the model",
        "alpha is 6.0 in the file and 2 in the model",
        "targets is ('query', 'value') in the file and ('query', 'key') in the model",
    ):
        assert part in str(error.value)
    for name, variable in low_rank_variables(other.backbone).items():
        np.testing.assert_array_equal(variable.value, before[name])


def test_an_adapter_of_another_model_is_refused(adapted, backbone_sizes, tmp_path):
    path = tmp_path / "a.lora.h5"
    adapted.backbone.save_lora_weights(path)
    other = OPTBackbone(**{**backbone_sizes, "num_layers": 3, "hidden_dim": 16})
    with pytest.raises(CheckpointError) as error:
        other.load_lora_weights(path)
    assert "missing transformer_layer_2/attention/qkv/lora_query_a" in str(error.value)
    assert f"{QKV}/lora_query_a is (32, 3), expected (16, 3)" in str(error.value)
    assert f"{QKV}/lora_value_b is (3, 32), expected (3, 16)" in str(error.value)
    assert other.lora is None
    assert len(other.trainable_variables) == len(other.weights)
    with pytest.raises(CheckpointError, match="surplus transformer_layer_1/attention/qkv/lora_query_a"):
        OPTBackbone(**{**backbone_sizes, "num_layers": 1}).load_lora_weights(path)


def test_files_that_are_no_adapters(toy_model, tmp_path):
    backbone = toy_model.backbone
    with pytest.raises(FileNotFoundError, match=r"there is no adapter .*none\.lora\.h5"):
        backbone.load_lora_weights(tmp_path / "none.lora.h5")
    (tmp_path / "text.lora.h5").write_text("hello")
    with pytest.raises(CheckpointError, match="is no LoRA adapter or is damaged"):
        backbone.load_lora_weights(tmp_path / "text.lora.h5")
    h5py.File(tmp_path / "empty.lora.h5", "w").close()
    with pytest.raises(CheckpointError, match="its format is None, expected 'opt-onnx LoRA 1'"):
        backbone.load_lora_weights(tmp_path / "empty.lora.h5")
    with h5py.File(tmp_path / "half.lora.h5", "w") as file:
        file.attrs["format"] = "opt-onnx LoRA 1"
    with pytest.raises(CheckpointError, match="is no LoRA adapter or is damaged"):
        backbone.load_lora_weights(tmp_path / "half.lora.h5")
    assert backbone.lora is None


# === What is refused ===


def test_saving_wants_lora_and_the_suffix(toy_model, adapted, tmp_path):
    with pytest.raises(ValueError, match=r"call enable_lora\(rank\) first"):
        toy_model.backbone.save_lora_weights(tmp_path / "a.lora.h5")
    for method in (adapted.backbone.save_lora_weights, adapted.backbone.load_lora_weights):
        with pytest.raises(ValueError, match=r"must end in '\.lora\.h5', got 'a\.h5'"):
            method("a.h5")


def test_lora_is_enabled_once(adapted):
    with pytest.raises(ValueError, match=r"already enabled \(LoRA\(rank=3, alpha=6, .*build the model"):
        adapted.backbone.enable_lora(3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "rank must be a whole number of at least 1, got 0"),
        ({"rank": 2.0}, "rank must be .* got 2.0"),
        ({"rank": True}, "rank must be .* got True"),
        ({"rank": 2, "alpha": 0}, "alpha must be a positive number, got 0"),
        ({"rank": 2, "alpha": float("nan")}, "alpha must be a positive number, got nan"),
        ({"rank": 2, "target_layer_names": ["query", "qkv"]}, "must be some of query, .*; got 'qkv'"),
        ({"rank": 2, "target_layer_names": []}, "must be some of query, .*; got none"),
    ],
)
def test_settings_that_are_refused(toy_model, arguments, message):
    with pytest.raises(ValueError, match=message):
        toy_model.backbone.enable_lora(**arguments)
    assert toy_model.backbone.lora is None
    assert not adapted_layers(toy_model.backbone)
