"""LoRA adapters: what is read, how it is merged, where the base is found, and what is refused."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time

import h5py
import numpy as np
import pytest

from exporter import OPTCausalLM, export_bundle
from exporter.adapters import edits, name_patterns
from exporter.errors import CheckpointError, PresetError
from exporter.presets import adapted
from exporter.presets.adapted import merged, open_preset
from exporter.weights import CheckpointWeights, read_weight
from tests.exporter.adapter_folders import FC1, PREFIX, Q0, pair, write_peft
from tests.exporter.conftest import write_hf_weights
from tests.exporter.export_helpers import fails, run

QKV = "transformer_layer_0/attention/qkv/kernel"


def weights(preset, adapters=()):
    """All weights of a preset by name, float32."""
    opened = open_preset(preset, adapters)
    with contextlib.closing(merged(CheckpointWeights(opened), opened)) as source:
        return {name: read_weight(source, name) for name in source.shapes}


def changed(before, after):
    """Names of the weights that differ."""
    return {name for name in after if not np.array_equal(after[name], before.get(name))}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "adapter"


# === Merging ===


def test_a_pair_is_added_to_its_own_columns_alone(plain_hf_folder, folder):
    tensors = pair()
    write_peft(folder, tensors)
    base, found = weights(plain_hf_folder), weights(plain_hf_folder, [folder])
    assert changed(base, found) == {QKV}
    a, b = tensors[f"{Q0}.lora_A.weight"], tensors[f"{Q0}.lora_B.weight"]
    expected = base[QKV][:, :32] + 4 / 2 * (b @ a).T
    np.testing.assert_allclose(found[QKV][:, :32], expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(found[QKV][:, 32:], base[QKV][:, 32:])


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("start", ["base_model.model.", "module.", "_orig_mod.base_model.model.", ""])
def test_forms_of_one_adapter_give_the_same_weights(plain_hf_folder, folder, tmp_path, kind, start):
    expected = weights(plain_hf_folder, [write_peft(folder)])
    tensors = {start + name.removeprefix("base_model.model."): v for name, v in pair().items()}
    other = write_peft(tmp_path / "other", tensors, kind, target_modules=["layers.0.self_attn.q_proj"])
    found = weights(plain_hf_folder, [other])
    assert not changed(expected, found)


def test_an_adapter_of_the_model_without_a_head(plain_hf_folder, folder, tmp_path):
    expected = weights(plain_hf_folder, [write_peft(folder)])
    tensors = {name.replace("model.model.decoder", "model.decoder"): v for name, v in pair().items()}
    write_peft(tmp_path / "bare", tensors, target_modules=r"decoder\.layers\.0\.self_attn\.q_proj")
    assert not changed(expected, weights(plain_hf_folder, [tmp_path / "bare"]))


def test_blocks_of_any_size_give_the_same_weights(plain_hf_folder, folder, monkeypatch):
    table = f"{PREFIX}embed_tokens"
    generator = np.random.default_rng(1)
    tensors = {
        f"{table}.lora_embedding_A": generator.normal(size=(2, 288)).astype("float32"),
        f"{table}.lora_embedding_B": generator.normal(size=(32, 2)).astype("float32"),
        f"{table}.lora_magnitude_vector": generator.normal(size=32).astype("float32"),
        **pair(FC1, 32, 64),
        f"{FC1}.lora_magnitude_vector": generator.normal(size=64).astype("float32"),
    }
    write_peft(folder, tensors, use_dora=True, target_modules=["embed_tokens", "layers.1.fc1"])
    whole = weights(plain_hf_folder, [folder])
    monkeypatch.setattr(edits, "BLOCK_BYTES", 7 * 32 * 4)
    monkeypatch.setattr("exporter.checkpoints.weight_map.BLOCK_BYTES", 11 * 32 * 4)
    for name, values in weights(plain_hf_folder, [folder]).items():
        np.testing.assert_allclose(values, whole[name], rtol=1e-5, atol=1e-6)
    assert "head/embeddings" in whole  # which the token table was tied to


def test_weights_scale_adapters_and_their_order_does_not_matter(plain_hf_folder, folder, tmp_path):
    other = write_peft(tmp_path / "other", pair(FC1, 32, 64, seed=1), lora_alpha=1)
    write_peft(folder)
    base = weights(plain_hf_folder)
    both = weights(plain_hf_folder, [(folder, 0.5), (other, -2)])
    for place, weight, name in (
        (folder, 0.5, QKV),
        (other, -2, "transformer_layer_1/intermediate/kernel"),
    ):
        alone = weights(plain_hf_folder, [place])[name]
        expected = base[name] + weight * (alone - base[name])
        np.testing.assert_allclose(both[name], expected, rtol=1e-5, atol=1e-6)
    assert not changed(both, weights(plain_hf_folder, [(other, -2), (folder, 0.5)]))
    assert not changed(base, weights(plain_hf_folder, [(folder, 0)]))


def test_an_adapter_of_peft_fits_a_keras_preset(toy_preset, folder):
    base, found = weights(toy_preset), weights(toy_preset, [write_peft(folder)])
    assert changed(base, found) == {QKV}
    tensors = pair()
    expected = 2 * (tensors[f"{Q0}.lora_B.weight"] @ tensors[f"{Q0}.lora_A.weight"]).T
    np.testing.assert_allclose(found[QKV][:, :32] - base[QKV][:, :32], expected, atol=1e-6)


# === Files of Keras models ===

ALL_TARGETS = [
    *("query", "key", "value", "attention_output"),
    *("feedforward_intermediate_dense", "feedforward_output_dense"),
]


def test_our_own_file_is_merged_as_the_model_that_wrote_it(build_model, toy_preset, tmp_path):
    model = build_model()
    model.backbone.enable_lora(3, ALL_TARGETS, alpha=5)
    generator = np.random.default_rng(0)
    for variable in model.backbone.trainable_variables:
        variable.assign(generator.normal(0, 0.2, variable.shape))
    model.backbone.save_lora_weights(tmp_path / "a.lora.h5")
    model.save_to_preset(tmp_path / "merged")
    found, expected = weights(toy_preset, [tmp_path / "a.lora.h5"]), weights(tmp_path / "merged")
    assert len(changed(weights(toy_preset), found)) == 8
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6, atol=1e-6)


@pytest.mark.reference
@pytest.mark.parametrize(
    "targets",
    [None, ["query", "key", "attention_output", "feedforward_output_dense"], ["value"]],
    ids=["default", "many", "one"],
)
def test_a_file_of_keras_hub_is_merged_as_its_model(build_hub_model, tmp_path, targets):
    model = build_hub_model(seed=4)
    model.save_to_preset(str(tmp_path / "base"))
    model.backbone.enable_lora(3, *([] if targets is None else [targets]))
    generator = np.random.default_rng(0)
    for variable in model.backbone.trainable_variables:
        if "lora_kernel" in variable.path:  # the file has no more, though biases learn too
            variable.assign(generator.normal(0, 0.2, variable.shape))
    model.backbone.save_lora_weights(str(tmp_path / "a.lora.h5"))
    opened = open_preset(tmp_path / "base", [tmp_path / "a.lora.h5"])
    assert opened.adapters[0].kind == "keras-hub"
    ours = OPTCausalLM.from_preset(tmp_path / "base", preprocessor=None)
    found = weights(tmp_path / "base", [tmp_path / "a.lora.h5"])
    for variable in ours.backbone.variables:
        variable.assign(found[variable.path])
    inputs = {"token_ids": np.arange(20)[None], "padding_mask": np.ones((1, 20), int)}
    expected = np.asarray(model.backbone(inputs))
    np.testing.assert_allclose(np.asarray(ours.backbone(inputs)), expected, atol=2e-5)


def test_a_keras_hub_file_of_another_model_is_refused(toy_preset, tmp_path):
    def refusal(**datasets):
        with h5py.File(tmp_path / "a.lora.h5", "w") as file:
            file["lora/vars/rank"] = 2
            for name, shape in datasets.items():
                file[f"lora/{name.strip('_').replace('__', '/vars/')}"] = np.ones(shape, "float32")
        with pytest.raises(CheckpointError) as raised:
            open_preset(toy_preset, [tmp_path / "a.lora.h5"])
        return str(raised.value)

    a, b = (32, 4, 2), (2, 8)
    found = refusal(_12__lora_kernel_a=a, _12__lora_kernel_b=b, _32__lora_kernel_a=a)
    assert (
        "has lora/32/vars/lora_kernel_a, which are of no projection of an OPT model of 2 layers"
        in found
    )
    assert "lacks lora/12/vars/lora_kernel_b" in refusal(_12__lora_kernel_a=a)
    found = refusal(_12__lora_kernel_a=(64, 4, 2), _12__lora_kernel_b=b)
    assert "lora_kernel_a is (64, 4, 2), and of query it must be (32, 4, 2)" in found
    assert "has no pairs" in refusal()


# === Where base, adapter and tokenizer are ===


def test_a_folder_with_an_adapter_alone_has_the_base_that_it_names(
    plain_hf_folder, tmp_path, monkeypatch, caplog
):
    expected = weights(plain_hf_folder, [write_peft(tmp_path / "expected")])
    monkeypatch.chdir(tmp_path)
    for name in (str(plain_hf_folder), "plain_hf", "../plain_hf"):  # by cwd, or by the adapter's folder
        place = write_peft(tmp_path / "tuned", base_model_name_or_path=name)
        caplog.clear()
        assert not changed(expected, weights(place))
        assert "holds an adapter, which is merged into the weights of" in caplog.text


def test_a_base_is_looked_for_on_the_hub(plain_hf_folder, tmp_path, monkeypatch):
    asked = []

    def resolve(preset, weights=True):
        asked.append(str(preset))
        return plain_hf_folder if str(preset).startswith("hf://") else tmp_path / "tuned"

    monkeypatch.setattr(adapted, "resolve_preset", resolve)
    for revision, handle in ((None, "hf://facebook/opt-125m"), ("v2", "hf://facebook/opt-125m@v2")):
        write_peft(tmp_path / "tuned", base_model_name_or_path="facebook/opt-125m", revision=revision)
        weights(tmp_path / "tuned")
        assert asked.pop() == handle


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (None, "does not name its base; give the base as the preset and this as the adapter"),
        ("", "does not name its base"),
        ("/no/such/folder", "'/no/such/folder', which is neither a folder here nor a repository"),
        ("a\nb", "base_model_name_or_path must be text"),
        ("a" * 5000, "base_model_name_or_path must be text"),
        (".", "which is neither a folder here nor a repository"),
        ("tuned", "which is neither a folder here nor a repository"),
    ],
)
def test_a_base_that_cannot_be_found(tmp_path, monkeypatch, base, message):
    monkeypatch.chdir(tmp_path)
    write_peft(tmp_path / "tuned", base_model_name_or_path=base)
    monkeypatch.chdir(tmp_path / "tuned" if base == "." else tmp_path)
    with pytest.raises(PresetError) as raised:
        open_preset(tmp_path / "tuned")
    assert message in str(raised.value)


def test_an_adapter_beside_weights_is_merged_into_them_and_told(plain_hf_folder, tmp_path, caplog):
    expected = weights(plain_hf_folder, [write_peft(tmp_path / "expected")])
    write_peft(plain_hf_folder, base_model_name_or_path="somebody/else")
    assert not changed(expected, weights(plain_hf_folder))
    assert "holds an adapter, which is merged into" in caplog.text
    model = OPTCausalLM.from_preset(plain_hf_folder, preprocessor=None)
    kernel = next(v for v in model.backbone.variables if v.path == QKV)
    np.testing.assert_array_equal(np.asarray(kernel.value), expected[QKV])


def test_the_tokenizer_of_an_adapter_s_folder_goes_before_the_base_s(
    plain_hf_folder, folder, toy_vocabulary, toy_merges
):
    write_peft(folder)
    assert open_preset(plain_hf_folder, [folder]).tokenizer_files is None
    (folder / "vocab.json").write_text(json.dumps(toy_vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *toy_merges, ""]), encoding="utf-8")
    assert open_preset(plain_hf_folder, [folder]).tokenizer_files is not None


# === What is refused ===

REFUSED_SETTINGS = [
    ({"peft_type": "IA3"}, "an adapter of peft's kind 'IA3' is not read"),
    ({"peft_type": "ADALORA"}, "'ADALORA' is not read"),
    ({"peft_type": "PREFIX_TUNING"}, "'PREFIX_TUNING' is not read"),
    ({"peft_type": None}, "kind None is not read"),
    ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS', no language model's"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which changes the base's weights"),
    ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
    ({"init_lora_weights": "olora"}, "init_lora_weights is 'olora'"),
    ({"init_lora_weights": 1.5}, "init_lora_weights is 1.5"),
    ({"layer_replication": [[0, 2], [1, 2]]}, "the settings layer_replication are on"),
    ({"alora_invocation_tokens": [1]}, "the settings alora_invocation_tokens are on"),
    ({"use_qalora": True}, "the settings use_qalora are on"),
    ({"target_parameters": ["experts"]}, "the settings target_parameters are on"),
    ({"kasa_config": {"a": 1}, "new_idea": 3}, "the settings kasa_config, new_idea are on"),
    ({"lora_alpha": "4"}, "lora_alpha must be a number"),
    ({"lora_alpha": True}, "lora_alpha must be a number"),
    ({"lora_alpha": 1e300}, "lora_alpha must be a number"),
    ({"use_rslora": "yes"}, "use_rslora must be true or false"),
    ({"use_dora": 1}, "use_dora must be true or false"),
    ({"target_modules": {"a": 1}}, "target_modules must be text or a list"),
    ({"target_modules": "(?=a)"}, "is not read: it holds (?="),
    ({"target_modules": "(a"}, "is not read: it leaves a group open"),
    ({"alpha_pattern": {"(a": 3}}, "is not read: it leaves a group open"),
    (
        {"alpha_pattern": {f".*{i}": 1 for i in range(17)}},
        "17 patterns are more than names, of at most",
    ),
    ({"alpha_pattern": {"a": "b"}}, "alpha_pattern['a'] must be a number"),
    ({"layers_to_transform": [0, "1"]}, "layers_to_transform must be whole numbers"),
    ({"trainable_token_indices": [1, 1]}, "trainable_token_indices gives a number twice"),
    ({"trainable_token_indices": {"lm_head": [1]}}, "and only embed_tokens' are read"),
    ({"target_modules": ["q_proj"]}, "lacks the pairs of model.decoder.layers.1.self_attn.q_proj"),
    ({"target_modules": ["fc2"]}, "lacks the pairs of model.decoder.layers.0.fc2"),
    ({"target_modules": []}, "has pairs for model.decoder.layers.0.self_attn.q_proj, which its config"),
    ({"target_modules": None}, "lacks the pairs of model.decoder.layers.0.self_attn.v_proj"),
    (
        {"use_dora": True},
        "use_dora=True, and for model.decoder.layers.0.self_attn.q_proj no lora_magnitude",
    ),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED_SETTINGS, ids=lambda value: str(value)[:40])
def test_settings_that_are_not_read(plain_hf_folder, folder, settings, message):
    write_peft(folder, **settings)
    with pytest.raises((PresetError, CheckpointError)) as raised:
        open_preset(plain_hf_folder, [folder])
    assert message in str(raised.value)
    assert len(str(raised.value)) < 700


def test_settings_that_say_nothing_of_the_weights(plain_hf_folder, folder, tmp_path):
    expected = weights(plain_hf_folder, [write_peft(folder)])
    ignored = {
        **dict.fromkeys(("new_idea", "kasa_config", "layers_pattern", "rank_pattern", "lora_bias")),
        **{
            "fan_in_fan_out": True,
            "lora_dropout": 0.5,
            "init_lora_weights": "gaussian",
            "bias": "none",
        },
        **{"megatron_core": "megatron.core", "r": 8, "eva_config": {"rho": 2.0}, "task_type": None},
    }
    found = weights(plain_hf_folder, [write_peft(tmp_path / "other", **ignored)])
    assert not changed(expected, found)


def tensor(name, *shape, dtype="float32"):
    return {name: np.ones(shape, dtype)}


ROWS = f"{PREFIX}embed_tokens.token_adapter.trainable_tokens_delta"
A, B = f"{Q0}.lora_A.weight", f"{Q0}.lora_B.weight"
REFUSED_TENSORS = [
    (pair(inputs=48), f"does not fit the base model: '{A}' is (2, 48), expected (2, 32)"),
    (pair(outputs=48), f"'{B}' is (48, 2), expected (32, 2)"),
    (pair() | tensor(B, 32, 3), f"'{B}' is (32, 3), expected (32, 2)"),
    (pair() | tensor(A, 2), f"'{A}' is (2,), expected (2, 32)"),
    ({A: pair()[A]}, "has lora_A.weight of model.decoder.layers.0.self_attn.q_proj, and a pair is"),
    (pair() | tensor(A, 0), "has no values in"),
    (pair() | tensor(A, 2, 32, dtype="int32"), f"tensor '{A}': dtype 'I32' is not one of"),
    ({}, "has no tensors"),
    (pair() | tensor(f"{Q0}.lora_magnitude_vector", 32), "use_dora=False, and for"),
    (pair() | tensor(f"{Q0}.lora_B.bias", 31), "is (31,), expected (32,)"),
    (pair() | tensor("base_model.model.score.weight", 2, 32), "', which is no weight of the base"),
    (pair() | tensor("base_model.model.prompt_embeddings", 2, 32), "which is no weight of the base"),
    (pair() | tensor(f"{PREFIX}layers.0.fc1.bias", 8), "is (8,), expected (64,)"),
    (pair(f"{PREFIX}layers.7.fc1", 32, 64), "has pairs for model.decoder.layers.7.fc1, of which"),
    (pair(f"{PREFIX}final_layer_norm"), "has pairs for model.decoder.final_layer_norm, of which"),
    (pair() | tensor(ROWS, 2, 32), "names no rows"),
    (pair() | {name.removeprefix("base_model."): v for name, v in pair().items()}, "of which the"),
    (pair() | {name.removeprefix("base_model.model."): v for name, v in pair().items()}, "twice, as"),
]  # fmt: skip


@pytest.mark.parametrize(("tensors", "message"), REFUSED_TENSORS, ids=lambda value: str(value)[:50])
def test_tensors_that_do_not_fit(plain_hf_folder, folder, tensors, message):
    write_peft(folder, tensors, target_modules=r".*(q_proj|fc1|norm)", layers_to_transform=None)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["target_modules"] = ["layers.0.self_attn.q_proj"]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as raised:
        open_preset(plain_hf_folder, [folder])
    assert message in str(raised.value)
    assert len(str(raised.value)) < 700


def test_many_names_are_cut(plain_hf_folder, folder):
    tensors = {}
    for layer in range(2, 400):
        tensors |= pair(f"{PREFIX}layers.{layer}.fc1", 32, 64)
    write_peft(folder, tensors, target_modules=["fc1"])
    with pytest.raises(CheckpointError, match="and 393 more") as raised:
        open_preset(plain_hf_folder, [folder])
    assert len(str(raised.value)) < 700


def test_values_that_are_no_numbers_are_told_with_the_adapter(plain_hf_folder, folder):
    write_peft(folder, pair() | {A: np.full((2, 32), np.nan, "float32")})
    with pytest.raises(
        CheckpointError, match=r"attention/qkv/kernel with .*adapter merged into it has"
    ):
        weights(plain_hf_folder, [folder])


def test_other_values_cannot_be_weighted_or_put_together(plain_hf_folder, folder, tmp_path):
    bias = {f"{Q0}.base_layer.bias": np.ones(32, "float32")}
    write_peft(folder, pair() | bias, target_modules=["layers.0.self_attn.q_proj"], bias="lora_only")
    with pytest.raises(CheckpointError, match=r"other values for .*bias .*; give it the weight 1"):
        open_preset(plain_hf_folder, [(folder, 0.5)])
    other = shutil.copytree(folder, tmp_path / "other")
    with pytest.raises(CheckpointError, match="both change transformer_layer_0/attention/qkv/bias"):
        open_preset(plain_hf_folder, [folder, other])
    assert open_preset(plain_hf_folder, [folder, write_peft(tmp_path / "plain")])


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), "much", None, True, 10**400])
def test_weights_must_be_finite_numbers(plain_hf_folder, folder, weight):
    with pytest.raises(ValueError, match="must be a finite number, got"):
        open_preset(plain_hf_folder, [(write_peft(folder), weight)])


def test_files_that_are_no_adapters(plain_hf_folder, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.bin").write_bytes(b"x")
    write_peft(folder)
    (folder / "adapter_model.safetensors").unlink()
    for place, message in (
        (tmp_path / "nothing", "no such folder or file"),
        ("a" * 5000, "no such folder or file"),
        (tmp_path / "empty", "is no adapter; give a folder with adapter_config.json"),
        (tmp_path / "file.bin", "is no adapter; give"),
        (folder, "has no adapter_model.safetensors or adapter_model.bin"),
        ("hf://nonsense", "cannot read the handle"),
    ):
        with pytest.raises((PresetError, CheckpointError)) as raised:
            open_preset(plain_hf_folder, [place])
        assert message in str(raised.value)
    with pytest.raises(ValueError, match="a live model has load_lora_weights"):
        export_bundle(OPTCausalLM.from_preset(plain_hf_folder, preprocessor=None), adapters=[folder])


@pytest.mark.parametrize(
    "pattern",
    ["(a*)*b", "(a|a)*b", "((a?){50}){50}b", ".*" * 300 + "b", "(" * 15 + "a*" + ")*" * 15 + "b"],
)
def test_a_pattern_that_was_made_to_be_slow_is_not(pattern):
    start = time.perf_counter()
    with contextlib.suppress(ValueError):
        assert not name_patterns.fullmatch(pattern, "a" * 80)
    assert time.perf_counter() - start < 5


def test_patterns_match_as_re_does():
    names = ["model.decoder.layers.0.fc1", "model.decoder.layers.11.fc1", "lm_head", "a.b", "ab", ""]
    patterns = [
        *("fc1", "layers.1.fc1", r"layers\.1\.fc1", "^lm_head", "lm.head$", r".*\.(0|1)\.(fc1|fc2)"),
        *(r"model\.\w+\.layers\.\d+\.fc[12]", "a.?b", "(?:a|b)+?", "(?P<x>[^.]*)", r"[a-z_]{2,7}", "$"),
    ]
    for pattern in patterns:
        for name in names:
            expected = re.fullmatch(pattern, name) is not None
            assert name_patterns.fullmatch(pattern, name) == expected, (pattern, name)
            expected = re.match(rf"(.*\.)?({pattern})$", name) is not None
            assert name_patterns.matches_end(pattern, name) == expected, (pattern, name)
    for pattern in (
        "a**",
        "(?=a)",
        r"\b",
        "[a",
        "a)",
        "(",
        "*",
        "a" * 1001,
        "(" * 30 + ")" * 30,
        "[[a]",
    ):
        with pytest.raises(ValueError, match="pattern"):
            name_patterns.fullmatch(pattern, "a")


def test_many_alpha_patterns_are_matched_in_no_time(plain_hf_folder, folder):
    patterns = {f"model.decoder.layers.{i}.fc1": i + 1 for i in range(4096)}
    write_peft(folder, pair(FC1, 32, 64), alpha_pattern=patterns)
    start = time.perf_counter()
    found, base = weights(plain_hf_folder, [folder]), weights(plain_hf_folder)
    assert time.perf_counter() - start < 5
    name = "transformer_layer_1/intermediate/kernel"
    tensors = pair(FC1, 32, 64)
    expected = 2 / 2 * (tensors[f"{FC1}.lora_B.weight"] @ tensors[f"{FC1}.lora_A.weight"]).T
    np.testing.assert_allclose(found[name] - base[name], expected, atol=1e-6)


# === The command ===


@pytest.mark.usefixtures("quick_tracing")
def test_the_command_merges_and_says_so(toy_preset, folder, tmp_path):
    place = write_peft(tmp_path / "a=0.5 b")  # an equals sign is part of the path
    arguments = ("--preset", toy_preset, "--output", tmp_path / "b", "--adapter", place)
    code, out, err = run(*arguments, "--precision", "int8", "--adapter-weight", "0.5")
    assert code == 0, err
    assert f"Base         {toy_preset}\nAdapter      {place} (peft), weight 0.5\n" in out
    line = fails(*arguments, "--adapter-weight", "1", "--adapter-weight", "2", "--force")
    assert line == (
        "--adapter-weight is given 2 times for 1 adapters; give one for each --adapter, in their "
        "order, or none"
    )


@pytest.mark.usefixtures("quick_tracing")
def test_the_command_finds_the_base_of_an_adapter(plain_hf_folder, tmp_path):
    place = write_peft(tmp_path / "tuned", base_model_name_or_path=str(plain_hf_folder))
    code, out, err = run("--preset", place, "--output", tmp_path / "b")
    assert code == 0, err
    assert f"Base         {plain_hf_folder}\nAdapter      {place} (peft), weight 1\n" in out
    expected = weights(place)[QKV]
    assert expected.tobytes() in (tmp_path / "b" / "weights.bin").read_bytes()


def test_an_adapter_s_pointer_of_git_lfs_is_called_one(plain_hf_folder, folder):
    write_peft(folder)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        kept = (folder / name).read_bytes()
        (folder / name).write_text(pointer)
        with pytest.raises(ValueError, match=rf"{name} is a pointer of Git LFS.*git lfs pull"):
            open_preset(plain_hf_folder, [folder])
        (folder / name).write_bytes(kept)


def test_a_pointer_in_the_place_of_a_keras_file_is_called_one(toy_preset, build_model, tmp_path):
    (tmp_path / "a.lora.h5").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(CheckpointError, match=r"a\.lora\.h5 is a pointer of Git LFS"):
        open_preset(toy_preset, [tmp_path / "a.lora.h5"])
    with pytest.raises(CheckpointError, match=r"a\.lora\.h5 is a pointer of Git LFS"):
        build_model().backbone.load_lora_weights(tmp_path / "a.lora.h5")


def test_sizes_that_the_base_has_not_are_refused(tmp_path, folder, toy_config):
    from dataclasses import replace

    write_hf_weights(tmp_path / "wide", replace(toy_config, hidden_dim=64))
    with pytest.raises(
        CheckpointError, match=r"expected \(2, 64\); give the base that it was trained on"
    ):
        open_preset(tmp_path / "wide", [write_peft(folder)])
