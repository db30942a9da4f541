"""keras-hub's test cases for `OPTCausalLM` and what it inherits of `Task` and `CausalLM`.

`docs/keras_hub_cases.md` lists them; its table names the tests here.
"""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest

pytest.importorskip("keras")
import keras
import tensorflow as tf

from exporter import CausalLM, OPTCausalLM, export_bundle
from exporter.errors import PresetError
from runtime import samplers
from tests.conformance.airports import (
    TEXT,
    build_model,
    build_preprocessor,
    check_configuration,
    difference,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPT = f" {TEXT}"
TEXTS = [PROMPT, PROMPT]
SAVED_FILES = {"config.json", "metadata.json", "model.weights.h5", "task.json"}


@pytest.fixture(scope="module")
def model():
    """Not to be altered, but for its sampler."""
    return build_model()


@pytest.fixture(scope="module")
def inputs():
    return build_preprocessor()(TEXTS)[0]


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "preset"
    model.save_to_preset(folder)
    return folder


# === The basic checks of a task ===


def test_a_model_goes_through_its_configuration(model):
    check_configuration(model)


def test_the_preprocessor_gives_what_the_model_takes(model, inputs):
    keras.tree.assert_same_structure(inputs, model._inputs_struct)


def test_predict_is_the_same_on_strings_datasets_and_tokens(model):
    found = model.predict(TEXTS, verbose=0)
    assert found.shape == (2, 8, model.preprocessor.tokenizer.vocabulary_size())
    texts = tf.data.Dataset.from_tensor_slices(TEXTS).batch(2)
    assert difference(model.predict(texts, verbose=0), found) <= 1e-6
    bare = OPTCausalLM(model.backbone)
    assert difference(bare.predict(texts.map(build_preprocessor()), verbose=0), found) <= 1e-6


@pytest.mark.slow
def test_fit_takes_strings_datasets_and_tokens():
    model = build_model()
    texts = tf.data.Dataset.from_tensor_slices(TEXTS).batch(2)
    tokens = texts.map(build_preprocessor())
    losses = [model.fit(data, verbose=0).history["loss"][0] for data in (TEXTS, texts)]
    model.preprocessor = None
    losses += model.fit(tokens, verbose=0).history["loss"]
    assert np.isfinite(losses).all()
    assert model.optimizer.iterations == 3


def test_without_compiling_fit_is_an_error(model):
    bare = OPTCausalLM(model.backbone, model.preprocessor, compile=False)
    with pytest.raises(ValueError, match=r"You must call `compile\(\)`"):
        bare.fit(TEXTS)
    assert len(bare.generate(TEXTS)) == 2  # it needs a sampler alone, and has the default one


# === Generating ===


def test_text_is_continued(model):
    assert PROMPT in model.generate(PROMPT)


def test_tokens_are_continued(model):
    prompt = model.preprocessor.generate_preprocess([PROMPT])
    bare = OPTCausalLM(model.backbone)
    found = bare.generate(prompt, stop_token_ids=None)
    assert np.array_equal(found["token_ids"][:, :5], prompt["token_ids"][:, :5])
    assert np.array_equal(found["padding_mask"][:, :5], prompt["padding_mask"][:, :5])
    assert found["padding_mask"].all()


@pytest.mark.parametrize("make", [list, np.array, keras.ops.convert_to_tensor])
def test_one_row_of_tokens_is_continued_without_a_batch_axis(model, make):
    """keras-hub has no place for it; here it is as with `runtime.Generator`."""
    prompt = model.preprocessor.generate_preprocess(PROMPT)
    rows = {name: value[None] for name, value in prompt.items()}
    row = {name: make(value.astype("int32").tolist()) for name, value in prompt.items()}
    bare = OPTCausalLM(model.backbone)
    for causal_lm in (model, bare):
        causal_lm.compile(sampler="greedy")
        expected = causal_lm.generate(rows, stop_token_ids=None)
        found = causal_lm.generate(row, stop_token_ids=None)
        assert found["padding_mask"].shape == prompt["token_ids"].shape
        assert found["padding_mask"].all()
        assert not prompt["padding_mask"].all()
        assert found["token_ids"].tolist() == expected["token_ids"][0].tolist()
        (result,) = causal_lm.generate_results(row, stop_token_ids=None)
        given = int(prompt["padding_mask"].sum())
        assert list(result.token_ids) == found["token_ids"][given:].tolist()


def test_a_model_that_always_ends_gives_the_prompts_back():
    """keras-hub patches the forward pass; here weights do it: the last norm gives one vector."""
    model = build_model()
    end = model.preprocessor.tokenizer.end_token_id
    table = np.asarray(model.backbone.token_embedding.embeddings)
    model.backbone.layer_norm.gamma.assign(np.zeros(4))
    model.backbone.layer_norm.beta.assign(np.ones(4))
    table[end] = 1e6
    model.backbone.token_embedding.embeddings.assign(table)
    prompts = [PROMPT, " airplane"]
    assert model.generate(prompts) == prompts
    results = model.generate_results(prompts)
    assert [(r.token_ids, r.finish_reason) for r in results] == [((end,), "stop")] * 2


def test_the_model_is_traced_once():
    """keras-hub traces anew after `compile`; a sampler here is no part of what is traced."""
    model = build_model()
    model.generate(PROMPT)
    decoder = model._decoder
    model.generate([PROMPT, " airplane"], max_length=7)
    model.compile(sampler="greedy")
    model.generate(PROMPT)
    assert model._decoder is decoder
    assert decoder._step.experimental_get_tracing_count() == 1
    assert type(model.sampler) is samplers.GreedySampler


# === Saving ===


def test_a_model_comes_back_from_a_keras_file(model, inputs, tmp_path):
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert type(again) is OPTCausalLM
    assert difference(again(inputs), model(inputs)) == 0


def test_a_model_comes_back_from_a_preset(model, saved):
    assert {path.name for path in saved.iterdir()} >= SAVED_FILES
    # The head is the embedding, so there are no weights but the backbone's.
    assert not (saved / "task.weights.h5").exists()
    task = json.loads((saved / "task.json").read_text())
    assert task["registered_name"] == "keras_hub>OPTCausalLM"
    assert not {"build_config", "compile_config"} & set(task)
    assert {"backbone", "preprocessor"} <= set(task["config"])
    again = OPTCausalLM.from_preset(saved)
    assert difference(again.predict(TEXTS, verbose=0), model.predict(TEXTS, verbose=0)) <= 1e-6
    narrow = OPTCausalLM.from_preset(saved, dtype="float16")
    assert narrow.backbone.dtype_policy.name == "float16"


def test_a_model_quantized_in_place_is_not_written(tmp_path):
    """keras-hub saves the codes with their scales; here `quantize()` is good for trying out only."""
    model = build_model()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Layer .* does not have a `quantize` method")
        model.quantize("int8")
    assert model.generate(PROMPT).startswith(PROMPT)
    writers = [
        model.save_to_preset,
        model.export_to_transformers,
        lambda folder: export_bundle(model, folder),
    ]
    for write in writers:
        with pytest.raises(ValueError, match="quantized in place, so embeddings/token_embedding/"):
            write(tmp_path / "folder")
        assert not (tmp_path / "folder").exists()


# === Presets ===


def test_the_base_class_picks_the_model_of_a_preset(saved):
    for cls in (CausalLM, OPTCausalLM):
        assert type(cls.from_preset(saved, load_weights=False)) is OPTCausalLM
    assert set(CausalLM.presets) == set(OPTCausalLM.presets)


def test_keywords_override_a_preset_s_configuration(saved):
    found = CausalLM.from_preset(saved, load_weights=False, dtype="bfloat16", compile=False)
    assert found.dtype_policy.name == found.backbone.dtype_policy.name == "bfloat16"
    assert not found.compiled


def test_a_preset_of_another_model_is_an_error(saved, tmp_path):
    config = json.loads((saved / "config.json").read_text())
    config["class_name"], config["registered_name"] = "BertBackbone", "keras_hub>BertBackbone"
    (tmp_path / "config.json").write_text(json.dumps(config))
    for cls in (CausalLM, OPTCausalLM):
        with pytest.raises(PresetError, match="Bert"):
            cls.from_preset(tmp_path, load_weights=False)


@pytest.mark.parametrize("cls", [CausalLM, OPTCausalLM])
def test_the_embedded_preset_generates(cls):
    with pytest.raises(PresetError, match="no preset 'clowntown'"):
        cls.from_preset("clowntown")
    model = cls.from_preset("opt_tiny_en", load_weights=False)
    assert type(model) is OPTCausalLM
    ids = model.preprocessor(["airplane at airport"], sequence_length=8)[0]
    assert model(ids).shape == (1, 8, 4096)


# === The summary ===


def summary(model: OPTCausalLM) -> str:
    parts: list[str] = []
    model.summary(print_fn=lambda text, line_break=False: parts.append(text))
    return "\n".join(parts)


def test_the_summary_names_the_preprocessor(model, capsys):
    found = summary(model)
    assert found.startswith('Preprocessor: "opt_causal_lm_preprocessor"\n')
    assert "opt_tokenizer (OPTTokenizer), vocabulary size: 31\n" in found
    assert "opt_backbone" in found
    assert capsys.readouterr().out == ""
    model.summary()
    assert "OPTTokenizer" in capsys.readouterr().out


def test_the_summary_of_a_model_without_preprocessor(model):
    assert "Preprocessor" not in summary(OPTCausalLM(model.backbone))


# === The way to transformers ===


def test_a_model_is_exported_to_transformers_with_its_tokenizer(model, tmp_path):
    model.export_to_transformers(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["OPTForCausalLM"]
    assert (tmp_path / "tokenizer_config.json").is_file()
    assert (tmp_path / "model.safetensors").is_file()


def test_a_model_and_its_preprocessor_are_exported_apart(model, tmp_path):
    bare = OPTCausalLM(model.backbone)
    bare.export_to_transformers(tmp_path / "model")
    model.preprocessor.export_to_transformers(tmp_path / "text")
    assert (tmp_path / "model" / "config.json").is_file()
    assert not (tmp_path / "model" / "tokenizer_config.json").exists()
    assert (tmp_path / "text" / "tokenizer_config.json").is_file()
    assert not (tmp_path / "text" / "config.json").exists()


def test_a_model_s_preprocessor_keeps_its_tokenizer(model):
    with pytest.raises(ValueError, match="tokenizer must be an OPTTokenizer, got None"):
        model.preprocessor.tokenizer = None
