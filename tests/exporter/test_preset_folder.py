"""What is read of a preset folder, and what is said of one that cannot be used."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import tokenizers

from exporter import OPTBackbone, OPTCausalLM, OPTCausalLMPreprocessor, OPTTokenizer
from exporter.errors import CheckpointError, PresetError
from exporter.presets.folder import read_preset
from runtime.tokenization.tokenizer import Tokenizer

KERAS_CONFIG = {
    "module": "keras_hub.src.models.opt.opt_backbone",
    "class_name": "OPTBackbone",
    "config": {
        "name": "opt_backbone",
        "trainable": True,
        "vocabulary_size": 288,
        "num_layers": 2,
        "num_heads": 4,
        "hidden_dim": 32,
        "intermediate_dim": 64,
        "dropout": 0.25,
        "max_sequence_length": 64,
    },
    "registered_name": "keras_hub>OPTBackbone",
}
HF_CONFIG = {
    "model_type": "opt",
    "architectures": ["OPTForCausalLM"],
    "vocab_size": 288,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "ffn_dim": 64,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "word_embed_proj_dim": 32,
    "dropout": 0.3,
}


def write(folder, config, name="config.json"):
    (folder / name).write_text(json.dumps(config), encoding="utf-8")
    return folder


def keras_config(**values):
    return {**KERAS_CONFIG, "config": {**KERAS_CONFIG["config"], **values}}


def write_assets(folder, vocabulary, merges):
    assets = folder / "assets" / "tokenizer"
    assets.mkdir(parents=True)
    write(assets, vocabulary, "vocabulary.json")
    (assets / "merges.txt").write_text("\n".join(merges), encoding="utf-8")


# === Keras ===


def test_a_keras_configuration(tmp_path, toy_config, toy_vocabulary, toy_merges):
    write(tmp_path, KERAS_CONFIG)
    write_assets(tmp_path, toy_vocabulary, toy_merges)
    write(
        tmp_path,
        {"config": {"sequence_length": 48, "add_start_token": False, "add_end_token": False}},
        "preprocessor.json",
    )
    preset = read_preset(tmp_path)
    assert preset.folder == tmp_path
    assert preset.format == "keras"
    assert preset.config == toy_config
    assert preset.dropout == 0.25
    assert preset.dtype == "float32"
    assert preset.sequence_length == 48
    assert preset.add_start_token is False
    assert preset.add_end_token is False
    assert tokenizer_of(preset).vocabulary == toy_vocabulary
    assert tokenizer_of(preset).merges == toy_merges


def test_an_older_keras_nlp_preset(tmp_path, toy_config, toy_vocabulary, toy_merges):
    config = {**keras_config(), "module": "keras_nlp.src.models.opt.opt_backbone"}
    config["registered_name"] = "keras_nlp>OPTBackbone"
    config["assets"], config["weights"] = [], "model.weights.h5"
    write(tmp_path, config)
    write_assets(tmp_path, toy_vocabulary, toy_merges)
    preset = read_preset(tmp_path)
    assert preset.config == toy_config
    assert preset.sequence_length == 1024
    assert preset.add_start_token is True
    assert preset.add_end_token is True
    assert tokenizer_of(preset).vocabulary == toy_vocabulary


def test_without_a_number_of_positions_a_keras_preset_has_2048(tmp_path):
    config = keras_config()
    del config["config"]["max_sequence_length"], config["config"]["dropout"]
    preset = read_preset(write(tmp_path, config))
    assert preset.config.max_sequence_length == 2048
    assert preset.dropout == 0.1


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("bfloat16", "bfloat16"),
        ("mixed_bfloat16", "mixed_bfloat16"),
        (
            {
                "module": "keras",
                "class_name": "DTypePolicy",
                "config": {"name": "float16"},
                "registered_name": None,
            },
            "float16",
        ),
        (None, "float32"),
    ],
)
def test_the_dtype_is_a_name_a_policy_or_nothing(tmp_path, dtype, expected):
    assert read_preset(write(tmp_path, keras_config(dtype=dtype))).dtype == expected


def test_the_dtype_may_be_absent(tmp_path):
    assert "dtype" not in KERAS_CONFIG["config"]
    assert read_preset(write(tmp_path, KERAS_CONFIG)).dtype == "float32"


def test_a_keras_preset_without_a_tokenizer(toy_preset, tmp_path, padded_tokens):
    folder = tmp_path / "bare"
    shutil.copytree(toy_preset, folder)
    shutil.rmtree(folder / "assets")
    assert read_preset(folder).tokenizer_files is None
    model = OPTCausalLM.from_preset(str(folder))
    assert model.preprocessor is None
    assert model(padded_tokens).shape == (3, 20, 288)
    for cls in (OPTTokenizer, OPTCausalLMPreprocessor):
        with pytest.raises(PresetError, match="has no tokenizer files"):
            cls.from_preset(str(folder))


def test_a_keras_vocabulary_without_its_merges_is_an_error(tmp_path, toy_vocabulary, toy_merges):
    write(tmp_path, KERAS_CONFIG)
    write_assets(tmp_path, toy_vocabulary, toy_merges)
    (tmp_path / "assets" / "tokenizer" / "merges.txt").unlink()
    with pytest.raises((PresetError, FileNotFoundError), match=r"merges\.txt"):
        read_preset(tmp_path)


@pytest.mark.reference
def test_a_preset_as_keras_hub_writes_it(hub_preset, toy_config, toy_vocabulary, toy_merges):
    preset = read_preset(hub_preset)
    assert preset.config == toy_config
    assert preset.dtype == "float32"
    assert preset.dropout == 0.0
    assert preset.sequence_length == 32
    assert tokenizer_of(preset).vocabulary == toy_vocabulary
    assert tokenizer_of(preset).merges == toy_merges


# === Hugging Face ===


def test_a_hugging_face_configuration(tmp_path, toy_config, toy_vocabulary, toy_merges):
    write(tmp_path, HF_CONFIG)
    write(tmp_path, toy_vocabulary, "vocab.json")
    text = "\r\n".join(["#version: 0.2", *toy_merges, ""])
    (tmp_path / "merges.txt").write_text(text, encoding="utf-8", newline="")
    preset = read_preset(tmp_path)
    assert preset.format == "huggingface"
    assert preset.config == toy_config
    assert preset.dropout == 0.3
    assert preset.dtype == "float32"
    assert preset.sequence_length == 64  # no longer than the model
    assert tokenizer_of(preset).vocabulary == toy_vocabulary
    assert tokenizer_of(preset).merges == toy_merges


def test_a_long_hugging_face_model_has_the_default_sequence_length(tmp_path):
    preset = read_preset(write(tmp_path, {**HF_CONFIG, "max_position_embeddings": 2048}))
    assert preset.config.max_sequence_length == 2048
    assert preset.sequence_length == 1024


def test_a_hugging_face_folder_with_switches(tmp_path, toy_config):
    """All of them: test_hugging_face_config.py."""
    switches = {"activation_function": "gelu", "enable_bias": False, "word_embed_proj_dim": 16}
    preset = read_preset(write(tmp_path, {**HF_CONFIG, **switches}))
    assert preset.config == replace(toy_config, activation="gelu", use_bias=False, embedding_dim=16)


def test_unsupported_switches_are_named_with_the_folder(tmp_path):
    values = {**HF_CONFIG, "activation_function": "tanh", "enable_bias": "no"}
    with pytest.raises(PresetError) as raised:
        read_preset(write(tmp_path, values))
    assert str(raised.value).startswith(f"{tmp_path} has switches that are not supported: ")
    assert "activation_function='tanh'" in str(raised.value)
    assert "enable_bias='no'" in str(raised.value)


def test_a_keras_preset_with_switches(tmp_path, toy_config):
    """As this project writes the models that keras-hub does not have."""
    switches = {"embedding_dim": 16, "activation": "silu", "norm_first": False, "tied_head": False}
    preset = read_preset(write(tmp_path, keras_config(**switches)))
    assert preset.config == replace(toy_config, **switches)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"activation": "tanh"}, "activation must be one of relu, gelu, gelu_tanh, silu; got 'tanh'"),
        ({"use_bias": 1}, "use_bias must be true or false, got 1"),
        ({"embedding_dim": 0}, "embedding_dim must be a whole number of at least 1, got 0"),
    ],
)
def test_bad_switches_of_a_keras_preset(tmp_path, values, message):
    with pytest.raises(PresetError) as raised:
        read_preset(write(tmp_path, keras_config(**values)))
    assert str(raised.value) == f"{tmp_path / 'config.json'}: {message}"


def test_a_hugging_face_folder_without_a_tokenizer(plain_hf_folder):
    assert read_preset(plain_hf_folder).tokenizer_files is None
    assert OPTCausalLM.from_preset(str(plain_hf_folder)).preprocessor is None


def tokenizer_of(preset):
    return Tokenizer.from_files(preset.tokenizer_files)


def fast_tokenizer(vocabulary, merges):
    pairs = [tuple(rule.split(" ")) for rule in merges]
    fast = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=pairs))
    fast.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return fast


def test_a_tokenizer_json_alone_will_do(tmp_path, toy_vocabulary, toy_merges, toy_tokenizer):
    write(tmp_path, HF_CONFIG)
    fast = fast_tokenizer(toy_vocabulary, toy_merges)
    fast.add_special_tokens(["</s>", "<pad>"])
    fast.post_processor = tokenizers.processors.TemplateProcessing(
        single="</s> $A", special_tokens=[("</s>", fast.token_to_id("</s>"))]
    )
    fast.save(str(tmp_path / "tokenizer.json"))
    preset = read_preset(tmp_path)
    assert tokenizer_of(preset).vocabulary == toy_vocabulary
    assert tokenizer_of(preset).merges == toy_merges
    text = " the quick brown fox\n\nimport"
    assert tokenizer_of(preset).encode(text) == toy_tokenizer.encode(text)


def test_tokens_added_to_a_tokenizer_json_join_the_vocabulary(tmp_path, toy_vocabulary, toy_merges):
    write(tmp_path, HF_CONFIG)
    kept = {token: i for i, token in enumerate(t for t in toy_vocabulary if t not in ("</s>", "<pad>"))}
    fast = fast_tokenizer(kept, toy_merges)
    fast.add_special_tokens(["<pad>", "</s>"])
    fast.save(str(tmp_path / "tokenizer.json"))
    vocabulary = tokenizer_of(read_preset(tmp_path)).vocabulary
    assert vocabulary == {**kept, **{t: fast.token_to_id(t) for t in ("<pad>", "</s>")}}


def test_merges_written_as_strings_are_read_too(tmp_path, toy_vocabulary, toy_merges):
    write(tmp_path, HF_CONFIG)
    model = {"type": "BPE", "vocab": toy_vocabulary, "merges": toy_merges}
    split = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    fast = {"model": model, "pre_tokenizer": split, "added_tokens": []}
    write(tmp_path, fast, "tokenizer.json")
    assert tokenizer_of(read_preset(tmp_path)).merges == toy_merges


@pytest.mark.parametrize(
    "fast",
    [{}, {"model": {"vocab": {}}}, {"model": {"vocab": {"a": 1}, "merges": 5}}, {"model": None}],
    ids=str,
)
def test_a_broken_tokenizer_json_is_an_error(tmp_path, fast):
    write(tmp_path, HF_CONFIG)
    write(tmp_path, fast, "tokenizer.json")
    with pytest.raises(PresetError):
        read_preset(tmp_path)


def test_the_error_of_a_tokenizer_names_the_tokenizer_file(tmp_path):
    write(tmp_path, HF_CONFIG)
    write(tmp_path, {}, "tokenizer.json")
    with pytest.raises(PresetError, match=r"tokenizer\.json lacks the value 'model'"):
        read_preset(tmp_path)


@pytest.mark.reference
def test_a_folder_whose_tokenizer_transformers_wrote(
    transformers, tmp_path, toy_vocabulary, toy_merges, toy_tokenizer
):
    write(tmp_path, HF_CONFIG)
    theirs = transformers.GPT2Tokenizer(
        vocab=toy_vocabulary,
        merges=[tuple(rule.split(" ")) for rule in toy_merges],
        unk_token="</s>",
        bos_token="</s>",
        eos_token="</s>",
        pad_token="<pad>",
    )
    theirs.save_pretrained(tmp_path)
    preset = read_preset(tmp_path)
    ours = tokenizer_of(preset)
    assert ours.special_token_ids == toy_tokenizer.special_token_ids
    text = " the quick brown</s> fox<pad>\n\nimport  9é"
    assert ours.encode(text) == toy_tokenizer.encode(text) == theirs(text)["input_ids"]


@pytest.mark.reference
def test_a_folder_as_transformers_writes_it(hf_folder, toy_config, toy_vocabulary, toy_merges):
    preset = read_preset(hf_folder)
    assert preset.format == "huggingface"
    assert preset.config == toy_config
    assert tokenizer_of(preset).vocabulary == toy_vocabulary
    assert tokenizer_of(preset).merges == toy_merges


# === What cannot be used ===


def test_no_config(tmp_path):
    with pytest.raises(PresetError) as raised:
        read_preset(tmp_path)
    assert str(raised.value) == (
        f"{tmp_path} is not a preset folder: it has no config.json (Keras and Hugging Face both "
        "write one beside the weights)"
    )


@pytest.mark.parametrize("text", ["", "{", "config", "{'a': 1}", "\N{LEFT DOUBLE QUOTATION MARK}"])
def test_a_broken_config(tmp_path, text):
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(PresetError, match=r"config\.json is not JSON: "):
        read_preset(tmp_path)


def test_a_config_of_other_bytes(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(PresetError, match=r"config\.json is not JSON: "):
        read_preset(tmp_path)


@pytest.mark.parametrize(("text", "kind"), [("[]", "list"), ("null", "NoneType"), ("7", "int")])
def test_a_config_that_is_no_object(tmp_path, text, kind):
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(PresetError, match=f"must hold a JSON object, got {kind}"):
        read_preset(tmp_path)


def test_another_keras_model(tmp_path):
    config = {**keras_config(), "class_name": "BertBackbone"}
    config["registered_name"] = "keras_hub>BertBackbone"
    with pytest.raises(PresetError) as raised:
        read_preset(write(tmp_path, config))
    assert "holds 'keras_hub>BertBackbone', not an OPT model ('keras_hub>OPTBackbone')" in str(
        raised.value
    )


@pytest.mark.parametrize("model_type", ["gpt2", None])
def test_another_hugging_face_model(tmp_path, model_type):
    config = {**HF_CONFIG, "model_type": model_type}
    with pytest.raises(PresetError, match=f"holds a {model_type!r} model, not 'opt'"):
        read_preset(write(tmp_path, config))


@pytest.mark.parametrize("names", [["vocabulary_size"], ["num_layers"], ["hidden_dim", "num_heads"]])
def test_missing_keras_values_are_named(tmp_path, names):
    config = keras_config()
    for name in names:
        del config["config"][name]
    with pytest.raises(PresetError) as raised:
        read_preset(write(tmp_path, config))
    assert str(raised.value) == (
        f"{tmp_path / 'config.json'}: model configuration: unknown names [], missing {names}"
    )


@pytest.mark.parametrize("name", ["vocab_size", "ffn_dim", "hidden_size"])
def test_a_missing_hugging_face_value_is_named(tmp_path, name):
    config = {key: value for key, value in HF_CONFIG.items() if key != name}
    with pytest.raises(PresetError, match=f"lacks the value '{name}'"):
        read_preset(write(tmp_path, config))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_heads": 5}, r"hidden_dim \(32\) must be a multiple of num_heads \(5\)"),
        ({"num_layers": 0}, "num_layers must be a whole number of at least 1, got 0"),
        ({"hidden_dim": "32"}, "hidden_dim must be a whole number of at least 1, got '32'"),
        ({"vocabulary_size": 288.0}, "vocabulary_size must be a whole number .* got 288.0"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon must be 1e-05, got 1e-06"),
    ],
)
def test_bad_sizes(tmp_path, values, message):
    with pytest.raises(PresetError, match=message):
        read_preset(write(tmp_path, keras_config(**values)))


@pytest.mark.parametrize("inner", [None, [], "text", 5])
def test_a_keras_config_of_another_shape(tmp_path, inner):
    with pytest.raises(PresetError, match=r"config\.json"):
        read_preset(write(tmp_path, {**KERAS_CONFIG, "config": inner}))


@pytest.mark.parametrize("preprocessor", [[], {"config": None}, {"config": {"sequence_length": "a"}}])
def test_a_broken_preprocessor_config(tmp_path, preprocessor):
    write(tmp_path, KERAS_CONFIG)
    write(tmp_path, preprocessor, "preprocessor.json")
    with pytest.raises(PresetError):
        read_preset(tmp_path)


@pytest.mark.parametrize("vocabulary", [[], {"a": "b"}, {"a": -1}], ids=str)
def test_a_broken_vocabulary(tmp_path, vocabulary, toy_merges):
    write(tmp_path, KERAS_CONFIG)
    write_assets(tmp_path, vocabulary, toy_merges)
    with pytest.raises(ValueError, match="vocabulary"):
        OPTTokenizer.from_preset(str(tmp_path))


def test_no_weights(tmp_path):
    write(tmp_path, KERAS_CONFIG)
    with pytest.raises(CheckpointError, match=r"expected model\.weights\.h5, or model\.weights\.json"):
        OPTBackbone.from_preset(str(tmp_path))
    write(tmp_path, HF_CONFIG)
    with pytest.raises(CheckpointError, match=r"expected model\.safetensors, or model\.safetensors\.i"):
        OPTBackbone.from_preset(str(tmp_path))
