"""`config.json` of Hugging Face's OPT models: every switch read and written, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from exporter.errors import PresetError
from exporter.presets.hugging_face_config import (
    ACTIVATION_NAMES,
    SIZES,
    SWITCHES,
    read_hugging_face_config,
    write_hugging_face_config,
)
from graphs.contract import ACTIVATIONS, ModelConfig

MODEL = ModelConfig(288, 2, 4, 32, 64, 48)
HF = {
    "model_type": "opt",
    "vocab_size": 288,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_size": 32,
    "ffn_dim": 64,
    "max_position_embeddings": 48,
}
# One value of their switches that is not the default, and the model that it makes.
CASES = {
    "do_layer_norm_before": (False, {"norm_first": False, "final_norm": False}),
    "enable_bias": (False, {"use_bias": False}),
    "layer_norm_elementwise_affine": (False, {"norm_affine": False}),
    "tie_word_embeddings": (False, {"tied_head": False}),
    "word_embed_proj_dim": (16, {"embedding_dim": 16}),
    "activation_function": ("gelu", {"activation": "gelu"}),
    "_remove_final_layer_norm": (True, {"final_norm": False}),
}
DEFAULTS = {
    **dict.fromkeys(SWITCHES, True),
    "word_embed_proj_dim": 32,
    "activation_function": "relu",
    "_remove_final_layer_norm": False,
}
# What has another value in the published files than transformers gives by default, sizes included.
# opt-350m: https://huggingface.co/facebook/opt-350m. Galactica with biases and scales, and without, as
# its paper has it (https://arxiv.org/abs/2211.09085) and transformers pull request 20390 added for it.
PUBLISHED = {
    "opt-350m": (
        {
            "vocab_size": 50272,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "hidden_size": 1024,
            "ffn_dim": 4096,
            "max_position_embeddings": 2048,
            "word_embed_proj_dim": 512,
            "do_layer_norm_before": False,
            "activation_function": "relu",
            "activation_dropout": 0.0,
            "prefix": "</s>",
        },
        ModelConfig(
            50272, 24, 16, 1024, 4096, 2048, embedding_dim=512, norm_first=False, final_norm=False
        ),
    ),
    "galactica with biases": (
        {
            **HF,
            "activation_function": "gelu",
            "learned_embeddings": True,
            "scale_embeddings": False,
            "word_embed_proj_dim": 32,
        },
        replace(MODEL, activation="gelu"),
    ),
    "galactica without biases": (
        {
            **HF,
            "activation_function": "gelu",
            "enable_bias": False,
            "layer_norm_elementwise_affine": False,
        },
        replace(MODEL, activation="gelu", use_bias=False, norm_affine=False),
    ),
    # An OPT-IML file is OPT's: it has no switch of its own.
    "opt-iml": ({**HF, "_remove_final_layer_norm": False, "word_embed_proj_dim": 32}, MODEL),
}


def read(**values):
    return read_hugging_face_config({**HF, **values}, "some/folder")


def refusal(**values):
    with pytest.raises(PresetError) as raised:
        read(**values)
    return str(raised.value)


# === Reading ===


def test_sizes_alone_are_opt_itself():
    assert read() == MODEL
    assert read().switches == {}


def test_switches_at_their_defaults_are_opt_itself():
    assert set(DEFAULTS) == set(CASES)
    assert read(**DEFAULTS) == MODEL
    assert read(word_embed_proj_dim=None) == MODEL


@pytest.mark.parametrize("name", CASES)
def test_each_switch(name):
    value, changes = CASES[name]
    assert read(**{name: value}) == replace(MODEL, **changes)
    assert read(**{**DEFAULTS, name: value}) == replace(MODEL, **changes)


def test_all_switches_at_once():
    found = read(**{name: value for name, (value, _) in CASES.items()})
    assert found == replace(
        MODEL,
        norm_first=False,
        final_norm=False,
        use_bias=False,
        norm_affine=False,
        tied_head=False,
        embedding_dim=16,
        activation="gelu",
    )


@pytest.mark.parametrize("removed", [True, False])
def test_a_final_norm_stands_only_where_norms_come_first(removed):
    assert read(do_layer_norm_before=False, _remove_final_layer_norm=removed).final_norm is False
    assert read(do_layer_norm_before=True, _remove_final_layer_norm=removed).final_norm is not removed


@pytest.mark.parametrize(("theirs", "ours"), ACTIVATION_NAMES.items())
def test_activations_have_several_names(theirs, ours):
    assert read(activation_function=theirs).activation == ours
    assert set(ACTIVATION_NAMES.values()) == set(ACTIVATIONS)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files(name):
    values, expected = PUBLISHED[name]
    assert read_hugging_face_config({"model_type": "opt", **values}, "here") == expected


# === What is refused ===


def test_all_that_is_not_supported_comes_in_one_error():
    found = refusal(
        activation_function="tanh",
        quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True},
        enable_bias="false",
        tie_word_embeddings=None,
        do_layer_norm_before=1,
        layer_norm_elementwise_affine=False,
    )
    assert found == (
        "some/folder has switches that are not supported: "
        f"activation_function='tanh' (supported: {', '.join(ACTIVATION_NAMES)}); "
        "quantization_config (supported: weights in float32, float16 or bfloat16); "
        "do_layer_norm_before=1 (supported: true, false); "
        "enable_bias='false' (supported: true, false); "
        "tie_word_embeddings=None (supported: true, false)"
    )


@pytest.mark.parametrize("name", ["tanh", "gelu_10", "quick_gelu", "Relu", None, 5, ["relu"]])
def test_other_activations_are_named(name):
    found = refusal(activation_function=name)
    assert f"activation_function={name!r} (supported: relu, gelu, gelu_python, gelu_new, " in found


@pytest.mark.parametrize("name", [*SWITCHES, "_remove_final_layer_norm"])
@pytest.mark.parametrize("value", [0, 1, "true", [], 1.0])
def test_flags_that_are_not_flags_are_named(name, value):
    assert refusal(**{name: value}) == (
        f"some/folder has switches that are not supported: {name}={value!r} (supported: true, false)"
    )


def test_a_quantization_config_of_null_is_none():
    assert read(quantization_config=None) == MODEL


@pytest.mark.parametrize("name", SIZES)
def test_a_missing_size_is_named(name):
    values = {key: value for key, value in HF.items() if key != name}
    with pytest.raises(KeyError, match=f"^'{name}'$"):
        read_hugging_face_config(values, "here")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_size": "32"}, "hidden_dim must be a whole number of at least 1, got '32'"),
        ({"num_hidden_layers": 0}, "num_layers must be a whole number of at least 1, got 0"),
        ({"num_attention_heads": 5}, "hidden_dim (32) must be a multiple of num_heads (5)"),
        ({"word_embed_proj_dim": 0}, "embedding_dim must be a whole number of at least 1, got 0"),
        ({"word_embed_proj_dim": 16.5}, "embedding_dim must be a whole number of at least 1, got 16.5"),
    ],
)
def test_bad_sizes(values, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        read(**values)


@pytest.mark.parametrize("model_type", ["gpt2", "OPT", "", None, 5])
def test_another_model_type(model_type):
    """Before anything else: what a switch means is OPT's to say."""
    expected = f"some/folder holds a {model_type!r} model, not 'opt'"
    assert refusal(model_type=model_type, activation_function="tanh") == expected


def test_no_model_type():
    values = {key: value for key, value in HF.items() if key != "model_type"}
    with pytest.raises(PresetError, match=r"^here holds a None model, not 'opt'$"):
        read_hugging_face_config(values, "here")


# === Writing ===


def written(config, dtype="float32", **options):
    return json.loads(json.dumps(write_hugging_face_config(config, dtype, **options)))


# Each switch alone, all of them, and each activation; as transformers can have them.
MODELS = [
    MODEL,
    *(read(**{name: value}) for name, (value, _) in CASES.items()),
    read(**{name: value for name, (value, _) in CASES.items()}),
    *(replace(MODEL, activation=activation, embedding_dim=48) for activation in ACTIVATIONS),
]


@pytest.mark.parametrize("config", MODELS, ids=lambda config: str(config.switches))
def test_what_is_written_is_read(config):
    assert read_hugging_face_config(written(config), "here") == config


def test_what_is_written_for_opt_itself():
    assert written(MODEL, "bfloat16", dropout=0.25) == {
        **HF,
        **DEFAULTS,
        "architectures": ["OPTForCausalLM"],
        "dropout": 0.25,
        "attention_dropout": 0.0,
        "layerdrop": 0.0,
        "use_cache": True,
        "dtype": "bfloat16",
    }


def test_a_final_norm_after_post_norm_layers_cannot_be_written():
    message = (
        "transformers' OPT has no final norm where norms come after the residuals "
        "(norm_first=False, final_norm=True)"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        write_hugging_face_config(replace(MODEL, norm_first=False), "float32")


@pytest.mark.reference
@pytest.mark.parametrize("name", ["defaults", *CASES, *PUBLISHED])
def test_transformers_reads_what_is_written_as_it_read_the_original(transformers, tmp_path, name):
    """Read there, read here and written, read there again: every value that we know is the same."""
    if name in PUBLISHED:
        values = {"model_type": "opt", **PUBLISHED[name][0]}
    else:
        values = {**HF, **({name: CASES[name][0]} if name in CASES else {})}
    theirs = transformers.OPTConfig.from_dict(values)
    config = read_hugging_face_config(theirs.to_dict(), "theirs")
    assert config == read_hugging_face_config(values, "ours")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(written(config, dropout=theirs.dropout)), encoding="utf-8")
    again = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(again) is transformers.OPTConfig
    for key in [*SIZES, *SWITCHES, "word_embed_proj_dim", "activation_function", "dropout"]:
        assert getattr(again, key) == getattr(theirs, key), key
    removed = theirs.do_layer_norm_before and theirs._remove_final_layer_norm
    assert again._remove_final_layer_norm is removed


@pytest.mark.reference
@pytest.mark.parametrize("name", ACTIVATION_NAMES)
def test_activations_are_those_that_transformers_has_under_these_names(transformers, name):
    """On numbers where exact and approximate gelu differ by more than the tolerance."""
    import numpy as np
    import torch
    from transformers.activations import ACT2FN

    from exporter.opt.layers import _ACTIVATIONS

    x = np.linspace(-6, 6, 1001, dtype="float32")
    theirs = ACT2FN[name](torch.from_numpy(x)).numpy()
    ours = {key: np.asarray(function(x)) for key, function in _ACTIVATIONS.items()}
    differences = {key: np.abs(values - theirs).max() for key, values in ours.items()}
    assert {key for key, value in differences.items() if value < 3e-6} == {ACTIVATION_NAMES[name]}
