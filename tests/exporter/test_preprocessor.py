"""`OPTCausalLMPreprocessor`: packing for training and for generation, and text from tokens."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from exporter import OPTCausalLMPreprocessor, OPTTokenizer
from runtime.tokenization.pipeline import SpecialTokens
from tests.exporter.galactica import galactica_tokenizer

START = END = 2
PAD = 1


@pytest.fixture(scope="module")
def ids(toy_tokenizer):
    """The ids of the words of " quick the fox"."""
    found = toy_tokenizer.encode(" quick the fox")
    assert len(found) == 3
    return found


def make(tokenizer, **options):
    return OPTCausalLMPreprocessor(tokenizer, **{"sequence_length": 6, **options})


def assert_packed(result, token_ids, padding_mask, labels, weights):
    inputs, y, sample_weight = result
    assert set(inputs) == {"token_ids", "padding_mask"}
    for found, expected in (
        (inputs["token_ids"], token_ids),
        (inputs["padding_mask"], padding_mask),
        (y, labels),
        (sample_weight, weights),
    ):
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
    assert inputs["token_ids"].dtype == y.dtype == np.int32
    assert inputs["padding_mask"].dtype == sample_weight.dtype == bool


def flat(result):
    """What `assert_packed` expects, of another preprocessor's answer."""
    inputs, y, sample_weight = result
    return inputs["token_ids"], inputs["padding_mask"], y, sample_weight


# === Packing for training ===


def test_a_short_text_is_padded(toy_tokenizer, ids):
    assert_packed(
        make(toy_tokenizer)(" quick the fox"),
        [START, *ids, END, PAD],
        [1, 1, 1, 1, 1, 0],
        [*ids, END, PAD, PAD],
        [1, 1, 1, 1, 0, 0],
    )


def test_a_text_that_just_fits_has_no_padding(toy_tokenizer, ids):
    assert_packed(
        make(toy_tokenizer, sequence_length=4)(" quick the fox"),
        [START, *ids],
        [1, 1, 1, 1],
        [*ids, END],
        [1, 1, 1, 1],
    )


def test_a_long_text_is_cut_to_leave_room_for_start_and_end(toy_tokenizer, ids):
    assert_packed(
        make(toy_tokenizer, sequence_length=3)(" quick the fox the fox"),
        [START, *ids[:2]],
        [1, 1, 1],
        [*ids[:2], END],
        [1, 1, 1],
    )


def test_without_a_start_token(toy_tokenizer, ids):
    assert_packed(
        make(toy_tokenizer, add_start_token=False)(" quick the fox"),
        [*ids, END, PAD, PAD],
        [1, 1, 1, 1, 0, 0],
        [*ids[1:], END, PAD, PAD, PAD],
        [1, 1, 1, 0, 0, 0],
    )


def test_without_an_end_token(toy_tokenizer, ids):
    assert_packed(
        make(toy_tokenizer, add_end_token=False)(" quick the fox"),
        [START, *ids, PAD, PAD],
        [1, 1, 1, 1, 0, 0],
        [*ids, PAD, PAD, PAD],
        [1, 1, 1, 0, 0, 0],
    )


def test_without_either(toy_tokenizer, ids):
    plain = make(toy_tokenizer, add_start_token=False, add_end_token=False, sequence_length=2)
    assert_packed(plain(" quick the fox"), ids[:2], [1, 1], ids[1:], [1, 1])


def test_the_length_can_be_overridden_for_a_call(toy_tokenizer, ids):
    preprocessor = make(toy_tokenizer)
    assert_packed(
        preprocessor(" quick the fox", sequence_length=2),
        [START, ids[0]],
        [1, 1],
        [ids[0], END],
        [1, 1],
    )
    assert preprocessor(" quick", sequence_length=9)[1].shape == (9,)
    assert preprocessor(" quick")[1].shape == (6,)


def test_a_call_can_override_the_special_tokens(toy_tokenizer, ids):
    """keras-hub documents these arguments of a call."""
    preprocessor, bare = make(toy_tokenizer), make(toy_tokenizer, add_start_token=False)
    text = " quick the fox"
    assert_packed(preprocessor(text, add_start_token=False), *flat(bare(text)))
    assert_packed(bare(text, add_start_token=True), *flat(preprocessor(text)))
    ending = make(toy_tokenizer, add_end_token=False)
    assert_packed(preprocessor(text, add_end_token=False), *flat(ending(text)))
    inputs = preprocessor(text, return_labels=False)
    assert set(inputs) == {"token_ids", "padding_mask"}
    np.testing.assert_array_equal(inputs["token_ids"], [START, *ids, END, PAD])


def test_an_empty_text_is_start_and_end(toy_tokenizer):
    assert_packed(
        make(toy_tokenizer, sequence_length=3)(""),
        [START, END, PAD],
        [1, 1, 0],
        [END, PAD, PAD],
        [1, 0, 0],
    )


def test_a_batch_has_a_row_for_each_text(toy_tokenizer, ids):
    assert_packed(
        make(toy_tokenizer, sequence_length=4)([" quick the fox", " the", ""]),
        [[START, *ids], [START, ids[1], END, PAD], [START, END, PAD, PAD]],
        [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]],
        [[*ids, END], [ids[1], END, PAD, PAD], [END, PAD, PAD, PAD]],
        [[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]],
    )


@pytest.mark.parametrize(
    "form", [list, tuple, np.array, tf.constant, lambda t: [s.encode() for s in t]]
)
def test_batches_come_in_many_forms(toy_tokenizer, form):
    texts = [" quick the fox", "import é"]
    preprocessor = make(toy_tokenizer)
    (expected, y, weight), (found, found_y, found_weight) = (
        preprocessor(texts),
        preprocessor(form(texts)),
    )
    assert_packed(
        (found, found_y, found_weight), expected["token_ids"], expected["padding_mask"], y, weight
    )


@pytest.mark.parametrize("form", [str, np.array, tf.constant, str.encode])
def test_one_text_has_no_batch_axis(toy_tokenizer, form):
    preprocessor = make(toy_tokenizer)
    found, y, weight = preprocessor(form(" quick the fox"))
    assert y.shape == weight.shape == (6,)
    np.testing.assert_array_equal(found["token_ids"], preprocessor(" quick the fox")[0]["token_ids"])


def test_given_labels_are_replaced(toy_tokenizer):
    preprocessor = make(toy_tokenizer)
    _, y, weight = preprocessor([" quick"], [1], [0.5])
    np.testing.assert_array_equal(y, preprocessor([" quick"])[1])
    np.testing.assert_array_equal(weight, preprocessor([" quick"])[2])


@pytest.mark.parametrize("data", [5, [5], None, [[" quick"]], [" quick", None]])
def test_what_is_no_text_is_an_error(toy_tokenizer, data):
    with pytest.raises(ValueError, match="expected a string or a flat list of strings, got"):
        make(toy_tokenizer)(data)


# === Inside tf.data ===


def test_mapped_over_batches_of_a_dataset(toy_tokenizer):
    preprocessor = make(toy_tokenizer)
    texts = [" quick the fox", " the", "", "import\n\nfox"]
    data = tf.data.Dataset.from_tensor_slices(texts).batch(3).map(preprocessor)
    inputs, y, weight = data.element_spec
    assert inputs["token_ids"].shape.as_list() == [None, 6]
    assert inputs["token_ids"].dtype == y.dtype == tf.int32
    assert inputs["padding_mask"].dtype == weight.dtype == tf.bool
    batches = list(data.as_numpy_iterator())
    assert [len(batch[1]) for batch in batches] == [3, 1]
    expected = preprocessor(texts)
    for i, name in enumerate(("token_ids", "padding_mask")):
        found = np.concatenate([batch[0][name] for batch in batches])
        np.testing.assert_array_equal(found, expected[0][name])
        np.testing.assert_array_equal(
            np.concatenate([batch[i + 1] for batch in batches]), expected[i + 1]
        )


def test_mapped_over_single_texts_and_labels_of_a_dataset(toy_tokenizer):
    preprocessor = make(toy_tokenizer)
    texts = [" quick the fox", " the"]
    data = tf.data.Dataset.from_tensor_slices((texts, [1, 0])).map(preprocessor)
    assert data.element_spec[1].shape.as_list() == [6]
    found = list(data.as_numpy_iterator())
    expected = preprocessor(texts)
    for i in range(2):
        np.testing.assert_array_equal(found[i][0]["token_ids"], expected[0]["token_ids"][i])
        np.testing.assert_array_equal(found[i][1], expected[1][i])
        np.testing.assert_array_equal(found[i][2], expected[2][i])


def test_generate_preprocess_inside_a_dataset(toy_tokenizer):
    preprocessor = make(toy_tokenizer)
    data = tf.data.Dataset.from_tensor_slices([" quick", ""]).batch(2)
    (found,) = data.map(preprocessor.generate_preprocess).as_numpy_iterator()
    expected = preprocessor.generate_preprocess([" quick", ""])
    np.testing.assert_array_equal(found["token_ids"], expected["token_ids"])
    np.testing.assert_array_equal(found["padding_mask"], expected["padding_mask"])


# === Generation ===


def test_prompts_have_a_start_and_never_an_end(toy_tokenizer, ids):
    preprocessor = make(toy_tokenizer, add_start_token=False)  # as Keras: of training only
    found = preprocessor.generate_preprocess([" quick the fox", ""])
    np.testing.assert_array_equal(
        found["token_ids"], [[START, *ids, PAD, PAD], [START, PAD, PAD, PAD, PAD, PAD]]
    )
    np.testing.assert_array_equal(found["padding_mask"], [[1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0]])


def test_a_prompt_is_cut_to_the_length(toy_tokenizer, ids):
    found = make(toy_tokenizer).generate_preprocess(" quick the fox", sequence_length=3)
    np.testing.assert_array_equal(found["token_ids"], [START, *ids[:2]])
    np.testing.assert_array_equal(found["padding_mask"], [1, 1, 1])


def test_text_comes_back_without_special_tokens_and_padding(toy_tokenizer, ids):
    preprocessor = make(toy_tokenizer)
    texts = [" quick the", "é", ""]
    assert preprocessor.generate_postprocess(preprocessor.generate_preprocess(texts)) == texts
    single = preprocessor.generate_preprocess(" quick the")
    assert preprocessor.generate_postprocess(single) == " quick the"
    answer = {
        "token_ids": tf.constant([[START, *ids, END, ids[0]]]),
        "padding_mask": tf.constant([[1, 1, 1, 1, 1, 0]]),
    }
    assert preprocessor.generate_postprocess(answer) == [" quick the fox"]


@pytest.mark.parametrize("form", [np.array, tf.constant])
@pytest.mark.parametrize("dtype", ["bool", "int32"])
def test_text_comes_back_from_arrays_and_tensors(toy_tokenizer, ids, form, dtype):
    preprocessor = make(toy_tokenizer)
    row, mask = [START, *ids, END, ids[0]], np.array([1, 1, 1, 1, 1, 0], dtype)
    single = {"token_ids": form(row), "padding_mask": form(mask)}
    assert preprocessor.generate_postprocess(single) == " quick the fox"
    batch = {"token_ids": form([row, row]), "padding_mask": form([mask, mask[::-1]])}
    assert preprocessor.generate_postprocess(batch) == [" quick the fox", " quick the fox quick"]


@pytest.mark.parametrize("batched", [True, False])
def test_there_and_back_inside_a_dataset(toy_tokenizer, batched):
    preprocessor = make(toy_tokenizer)
    texts = [" quick the", "é", ""]
    data = tf.data.Dataset.from_tensor_slices(texts)
    data = data.batch(3) if batched else data
    data = data.map(preprocessor.generate_preprocess).map(preprocessor.generate_postprocess)
    assert data.element_spec == tf.TensorSpec([None] if batched else [], tf.string)
    found = [np.atleast_1d(element) for element in data.as_numpy_iterator()]
    assert [text.decode() for text in np.concatenate(found)] == texts


# === A tokenizer without a start token ===


@pytest.fixture(scope="module")
def startless():
    fast = galactica_tokenizer([" quick the fox"] * 3, 300)
    special = SpecialTokens(None, END, PAD)
    return OPTTokenizer.from_files(
        {"tokenizer.json": fast.to_str(), "special_tokens.json": special.to_json()}
    )


def test_without_a_start_token_rows_begin_with_text(startless):
    preprocessor = make(startless)
    quick, the = startless.encode(" quick the")
    assert_packed(
        preprocessor(" quick the"),
        [quick, the, END, PAD, PAD, PAD],
        [1, 1, 1, 0, 0, 0],
        [the, END, PAD, PAD, PAD, PAD],
        [1, 1, 0, 0, 0, 0],
    )
    found = preprocessor.generate_preprocess([" quick the"])
    np.testing.assert_array_equal(found["token_ids"], [[quick, the, PAD, PAD, PAD, PAD]])
    assert preprocessor.generate_postprocess(found) == [" quick the"]


def test_an_empty_prompt_needs_a_start_token(startless):
    with pytest.raises(ValueError, match="prompt 1 has no token, and this tokenizer has no start"):
        make(startless).generate_preprocess([" quick", ""])


# === Configuration ===


def test_serialized_and_back(toy_tokenizer):
    preprocessor = make(toy_tokenizer, add_end_token=False, name="mine")
    written = keras.saving.serialize_keras_object(preprocessor)
    assert written["registered_name"] == "opt_onnx>OPTCausalLMPreprocessor"
    config = written["config"]
    assert {name: value for name, value in config.items() if name != "tokenizer"} == {
        "name": "mine",
        "sequence_length": 6,
        "add_start_token": True,
        "add_end_token": False,
    }
    again = keras.saving.deserialize_keras_object(json.loads(json.dumps(written)))
    assert again.get_config() == preprocessor.get_config()
    text = " quick the</s>"
    assert_packed(again(text), *flat(preprocessor(text)))


def test_defaults(toy_tokenizer):
    config = OPTCausalLMPreprocessor(toy_tokenizer).get_config()
    assert config["sequence_length"] == 1024
    assert config["add_start_token"] is config["add_end_token"] is True
    assert OPTCausalLMPreprocessor.tokenizer_cls is OPTTokenizer


def test_the_length_can_be_set(toy_tokenizer, ids):
    preprocessor = make(toy_tokenizer)
    preprocessor.sequence_length = 3
    assert preprocessor.sequence_length == 3
    assert_packed(
        preprocessor(" quick the fox the"), [START, *ids[:2]], [1, 1, 1], [*ids[:2], END], [1, 1, 1]
    )
    assert preprocessor.generate_preprocess(" quick")["token_ids"].shape == (3,)
    with pytest.raises(ValueError, match="sequence_length must be a positive whole number: 0"):
        preprocessor.sequence_length = 0
    with pytest.raises(ValueError, match="sequence_length must be a positive whole number: 0"):
        preprocessor(" quick", sequence_length=0)


@pytest.mark.parametrize("length", [0, -1, 1.5, "8", None])
def test_a_bad_length(toy_tokenizer, length):
    with pytest.raises(ValueError, match="sequence_length must be a positive whole number"):
        OPTCausalLMPreprocessor(toy_tokenizer, sequence_length=length)


# === Against keras-hub ===


@pytest.mark.reference
@pytest.mark.parametrize("length", [3, 7, 32])
@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("end", [True, False])
def test_equal_to_keras_hub_s(keras_hub, toy_tokenizer, toy_vocabulary, toy_merges, length, start, end):
    theirs = keras_hub.models.OPTCausalLMPreprocessor(
        keras_hub.models.OPTTokenizer(vocabulary=toy_vocabulary, merges=toy_merges),
        sequence_length=length,
        add_start_token=start,
        add_end_token=end,
    )
    ours = make(toy_tokenizer, sequence_length=length, add_start_token=start, add_end_token=end)
    # Words that neither the split pattern nor its absence tears or joins.
    texts = [" quick the brown fox", " the", "import", " quick quick quick quick quick quick quick"]
    inputs, y, weight = theirs(texts)
    assert_packed(
        ours(texts),
        np.asarray(inputs["token_ids"]),
        np.asarray(inputs["padding_mask"]),
        np.asarray(y),
        np.asarray(weight),
    )
    expected = theirs.generate_preprocess(texts, sequence_length=length)
    found = ours.generate_preprocess(texts, sequence_length=length)
    for name in ("token_ids", "padding_mask"):
        np.testing.assert_array_equal(found[name], np.asarray(expected[name]))
    assert ours.generate_postprocess(found) == list(theirs.generate_postprocess(expected))
