"""keras-hub's test cases for `OPTTokenizer` and `OPTCausalLMPreprocessor`.

`docs/keras_hub_cases.md` lists them; its table names the tests here.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("keras")
import tensorflow as tf

from exporter import OPTCausalLMPreprocessor, OPTTokenizer
from exporter.errors import PresetError
from tests.conformance.airports import (
    TEXT,
    build_preprocessor,
    build_tokenizer,
    check_configuration,
    vocabulary,
)

TEXTS = [" airplane at airport</s>", " airplane airport"]
IDS = [[23, 14, 24, 23, 16, 30], [23, 14, 23, 16]]


def rows(data: tf.RaggedTensor | tf.Tensor | np.ndarray | list) -> list:
    """Values as lists."""
    if isinstance(data, tf.RaggedTensor):
        return data.to_list()
    return np.asarray(data).tolist() if hasattr(data, "__array__") else data


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(special_last=True)


@pytest.fixture
def preprocessor():
    return build_preprocessor()


# === The tokenizer ===


def test_a_tokenizer_goes_through_its_configuration(tokenizer):
    check_configuration(tokenizer)


def test_texts_become_ids_and_texts_again(tokenizer):
    assert tokenizer(TEXTS) == IDS
    assert tokenizer.detokenize(IDS) == TEXTS


def test_texts_of_a_dataset_become_the_same_ids(tokenizer):
    texts = tf.data.Dataset.from_tensor_slices(TEXTS)
    single = texts.map(tokenizer).ragged_batch(1_000).get_single_element()
    batched = texts.batch(1_000).map(tokenizer).get_single_element()
    assert rows(single) == rows(batched) == IDS


def test_a_vocabulary_without_the_special_tokens_is_an_error():
    without = {token: i for i, token in enumerate(["a", "b", "c"])}
    with pytest.raises(ValueError, match=r"Cannot find special token '</s>' in the vocabulary of 3"):
        OPTTokenizer(vocabulary=without, merges=[])
    with pytest.raises(ValueError, match="must map token strings to ids, got list"):
        OPTTokenizer(vocabulary=["a", "b", "c"], merges=[])


def test_a_tokenizer_of_the_embedded_preset():
    tokenizer = OPTTokenizer.from_preset("opt_tiny_en")
    ids = tokenizer(["The quick brown fox."])
    assert tokenizer.detokenize(ids) == ["The quick brown fox."]
    assert (tokenizer.start_token_id, tokenizer.end_token_id, tokenizer.pad_token_id) == (2, 2, 1)


# === The preprocessor ===


def test_a_preprocessor_goes_through_its_configuration(preprocessor):
    check_configuration(preprocessor)


EXPECTED = (
    {
        "token_ids": [[0, 4, 16, 26, 25, 18, 0, 1]],
        "padding_mask": [[1, 1, 1, 1, 1, 1, 1, 0]],
    },
    [[4, 16, 26, 25, 18, 0, 1, 1]],
    [[1, 1, 1, 1, 1, 1, 0, 0]],
)


def as_lists(parts: tuple) -> tuple:
    inputs, labels, weights = parts
    return ({name: rows(values) for name, values in inputs.items()}, rows(labels), rows(weights))


def test_texts_become_inputs_labels_and_weights(preprocessor):
    assert as_lists(preprocessor([TEXT])) == EXPECTED


def test_texts_of_a_dataset_become_the_same_inputs(preprocessor):
    texts = tf.data.Dataset.from_tensor_slices([TEXT])
    single = texts.map(preprocessor).ragged_batch(1_000).get_single_element()
    batched = texts.batch(1_000).map(preprocessor).get_single_element()
    assert as_lists(single) == as_lists(batched) == EXPECTED


def test_the_sequence_length_may_change(preprocessor):
    assert preprocessor([TEXT])[0]["token_ids"].shape == (1, preprocessor.sequence_length)
    preprocessor.sequence_length = 17
    assert preprocessor([TEXT])[0]["token_ids"].shape == (1, 17)


def test_without_start_and_end_tokens():
    plain = build_preprocessor(add_start_token=False, add_end_token=False)
    inputs, labels, weights = as_lists(plain([TEXT] * 4))
    assert inputs["token_ids"] == [[4, 16, 26, 25, 18, 1, 1, 1]] * 4
    assert inputs["padding_mask"] == [[1, 1, 1, 1, 1, 0, 0, 0]] * 4
    assert labels == [[16, 26, 25, 18, 1, 1, 1, 1]] * 4
    assert weights == [[1, 1, 1, 1, 0, 0, 0, 0]] * 4


def test_a_prompt_has_a_start_token_and_no_end_token(preprocessor):
    found = preprocessor.generate_preprocess(TEXT)
    assert found["token_ids"].tolist() == [0, 4, 16, 26, 25, 18, 1, 1]
    assert found["padding_mask"].tolist() == [1, 1, 1, 1, 1, 1, 0, 0]


def test_generated_ids_become_text_without_special_tokens(preprocessor):
    generated = {
        "token_ids": [0, 4, 16, 26, 25, 18, 0, 1],
        "padding_mask": [1, 1, 1, 1, 1, 1, 1, 0],
    }
    assert preprocessor.generate_postprocess(generated) == TEXT


# === Presets of the preprocessor, and the way to transformers ===


def test_a_preprocessor_of_a_preset(preprocessor, tmp_path):
    preprocessor.save_to_preset(tmp_path)
    found = OPTCausalLMPreprocessor.from_preset(tmp_path)
    assert type(found) is OPTCausalLMPreprocessor
    assert as_lists(found([TEXT])) == EXPECTED
    assert OPTCausalLMPreprocessor.from_preset(tmp_path, sequence_length=16).sequence_length == 16


def test_a_preset_without_a_tokenizer_has_no_preprocessor(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(PresetError):
        OPTCausalLMPreprocessor.from_preset(tmp_path)


def test_a_preprocessor_is_exported_to_transformers(tmp_path):
    build_preprocessor().export_to_transformers(tmp_path)
    assert (tmp_path / "tokenizer_config.json").is_file()
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize("value", [None, "opt_tiny_en"])
def test_a_preprocessor_has_a_tokenizer(preprocessor, value):
    with pytest.raises(ValueError, match=f"tokenizer must be an OPTTokenizer, got {value!r}"):
        OPTCausalLMPreprocessor(tokenizer=value)
    with pytest.raises(ValueError, match="make one with OPTTokenizer"):
        preprocessor.tokenizer = value
    assert preprocessor.tokenizer.vocabulary_size() == len(vocabulary())
