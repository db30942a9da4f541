"""`OPTTokenizer`'s Keras interface: kinds of input, options, `tf.data`, saving."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from exporter import OPTTokenizer
from runtime.tokenization.pipeline import SpecialTokens
from tests.exporter.galactica import galactica_tokenizer
from tests.exporter.varied_texts import HAND_PICKED

TEXTS = [" quick the fox", "import é", ""]


@pytest.fixture(scope="module")
def make(toy_vocabulary, toy_merges):
    """Builds the toy tokenizer with options."""

    def build(**options):
        return OPTTokenizer(vocabulary=toy_vocabulary, merges=toy_merges, **options)

    return build


@pytest.fixture(scope="module")
def galactica_files():
    fast = galactica_tokenizer(HAND_PICKED, 400)
    return {"tokenizer.json": fast.to_str(), "special_tokens.json": SpecialTokens(None, 2, 1).to_json()}


# === Kinds of input ===


@pytest.mark.parametrize(
    "form", [list, tuple, np.array, tf.constant, lambda t: [tf.constant(s) for s in t]]
)
def test_batches_come_in_many_forms(make, form):
    tokenizer = make()
    expected = [tokenizer.encode(text) for text in TEXTS]
    assert tokenizer(form(TEXTS)) == tokenizer.tokenize(form(TEXTS)) == expected


@pytest.mark.parametrize("form", [str, np.array, tf.constant, str.encode])
def test_one_text_is_an_array(make, form):
    tokenizer = make()
    found = tokenizer(form(TEXTS[1]))
    assert found.dtype == np.int32
    assert found.tolist() == tokenizer.encode(TEXTS[1])


@pytest.mark.parametrize("data", [5, [5], None, [[" quick"]], np.zeros((1, 1))])
def test_what_is_no_text_is_an_error(make, data):
    with pytest.raises(ValueError, match="expected a string or a flat list of strings, got"):
        make()(data)


def test_detokenize_takes_ids_in_many_forms(make):
    tokenizer = make()
    rows = tokenizer(TEXTS)
    assert tokenizer.detokenize(rows) == TEXTS
    assert tokenizer.detokenize(tf.ragged.constant(rows)) == TEXTS
    assert tokenizer.detokenize(np.array([rows[0], rows[0]])) == [TEXTS[0]] * 2
    for form in (list, tuple, np.array, tf.constant):
        assert tokenizer.detokenize(form(rows[0])) == TEXTS[0]
    quick = tokenizer.token_to_id("Ġquick")
    assert tokenizer.detokenize(quick) == tokenizer.detokenize(np.int32(quick)) == " quick"
    assert tokenizer.detokenize([]) == ""
    assert tokenizer.detokenize([2, quick, 1]) == "</s> quick<pad>"
    for bad in ("text", None, [[[1]]], [None]):
        with pytest.raises(ValueError, match="expected token ids"):
            tokenizer.detokenize(bad)


# === Options ===


def test_a_sequence_length_makes_dense_arrays(make):
    dense, plain = make(sequence_length=4), make()
    found = dense(TEXTS)
    assert found.shape == (3, 4)
    assert found.dtype == np.int32
    ids = [plain.encode(text) for text in TEXTS]
    np.testing.assert_array_equal(found[0], [*ids[0], 1][:4])
    np.testing.assert_array_equal(found[1], [*ids[1], 1, 1][:4])
    np.testing.assert_array_equal(found[2], [1, 1, 1, 1])
    np.testing.assert_array_equal(dense(TEXTS[0]), found[0])
    np.testing.assert_array_equal(make(sequence_length=2)(TEXTS[0]), ids[0][:2])


def test_token_strings(make):
    tokenizer = make(dtype="string")
    assert tokenizer("é the") == ["Ã", "©", "Ġthe"]
    assert tokenizer([" quick", ""]) == [["Ġquick"], []]
    assert make(dtype="string", sequence_length=2)([" quick"]) == [["Ġquick", "<pad>"]]


@pytest.mark.parametrize("dtype", ["int64", "uint16", tf.int64, np.int64])
def test_integer_dtypes(make, dtype):
    assert make(dtype=dtype)(" quick").dtype == np.dtype(make(dtype=dtype).dtype)
    assert make(dtype=dtype).dtype != "int32"


@pytest.mark.parametrize("dtype", ["float32", "bool", tf.float16])
def test_other_dtypes_are_errors(make, dtype):
    with pytest.raises(ValueError, match=r"must be an integer type or a string\. Received: dtype="):
        make(dtype=dtype)


def test_a_prefix_space(make):
    spaced = make(add_prefix_space=True)
    quick = spaced.token_to_id("Ġquick")
    assert spaced("quick").tolist() == spaced(" quick").tolist() == [quick]
    assert make()("quick").tolist() != [quick]


def test_unsplittable_tokens(make):
    whole = make(unsplittable_tokens=["</s>", "<pad>", "<unk>"])
    assert whole("<unk></s>").tolist() == [3, 2]
    assert make()("<unk></s>").tolist()[-2:] == [make().token_to_id(">"), 2]
    assert make()("<unk>").tolist() != [3]
    assert make().unsplittable_tokens == ["</s>", "<pad>"]
    assert whole.unsplittable_tokens == ["</s>", "<pad>", "<unk>"]
    with pytest.raises(ValueError, match=r"must be in the vocabulary; \['<mask>'\] are not"):
        make(unsplittable_tokens=["</s>", "<mask>"])


def test_a_bundle_keeps_the_options(make, tmp_path):
    """Vocabulary and merges alone would lose them, so the whole pipeline is saved."""
    from runtime.tokenization.tokenizer import Tokenizer

    text = "quick<unk> the</s>"
    for options in ({"add_prefix_space": True}, {"unsplittable_tokens": ["<unk>"]}):
        tokenizer = make(**options)
        assert tokenizer.save(tmp_path) == ["tokenizer.json", "special_tokens.json"]
        assert Tokenizer.from_folder(tmp_path).encode(text) == tokenizer.encode(text)
        assert tokenizer.encode(text) != make().encode(text)


def test_what_a_bundle_cannot_keep_is_an_error(tmp_path):
    vocabulary = {"<pad>": 1, "</s>": 2, "Ġfox": 5}
    merges = ["Ġ f", "o x", "Ġf ox"]
    tokenizer = OPTTokenizer(vocabulary, merges, add_prefix_space=True)
    assert tokenizer("fox").tolist() == [5]
    with pytest.raises(ValueError, match="lacks tokens of its own merge rules"):
        tokenizer.save(tmp_path)


# === Without a vocabulary ===


def test_the_vocabulary_may_come_later(toy_vocabulary, toy_merges, make):
    tokenizer = OPTTokenizer()
    assert "assets" not in tokenizer.get_config()
    for use in (tokenizer.vocabulary_size, tokenizer.get_vocabulary, lambda: tokenizer("text")):
        with pytest.raises(ValueError, match="No vocabulary has been set for the tokenizer"):
            use()
    tokenizer.set_vocabulary_and_merges(toy_vocabulary, toy_merges)
    assert tokenizer(TEXTS) == make()(TEXTS)
    assert tokenizer.id_to_token(2) == "</s>"
    tokenizer.set_vocabulary_and_merges(None, None)
    with pytest.raises(ValueError, match="No vocabulary has been set"):
        tokenizer.id_to_token(2)


@pytest.mark.parametrize("options", [{"vocabulary": {}}, {"merges": []}])
def test_vocabulary_and_merges_go_together(options):
    with pytest.raises(ValueError, match="needs both `vocabulary` and `merges`, or neither"):
        OPTTokenizer(**options)


# === Inside tf.data ===


def values(dataset):
    """The elements, arrays and ragged ones as lists."""
    found = [e.to_list() if isinstance(e, tf.RaggedTensor) else e.numpy() for e in dataset]
    return [e.tolist() if isinstance(e, np.ndarray) else e for e in found]


def test_mapped_over_single_texts(make):
    tokenizer = make()
    data = tf.data.Dataset.from_tensor_slices(TEXTS).map(tokenizer)
    assert data.element_spec == tf.TensorSpec([None], tf.int32)
    assert values(data) == tokenizer(TEXTS)
    back = data.map(tokenizer.detokenize)
    assert back.element_spec == tf.TensorSpec([], tf.string)
    assert [text.decode() for text in values(back)] == TEXTS


def test_mapped_over_batches(make):
    tokenizer = make()
    data = tf.data.Dataset.from_tensor_slices(TEXTS).batch(2).map(tokenizer)
    assert isinstance(data.element_spec, tf.RaggedTensorSpec)
    assert [row for batch in values(data) for row in batch] == tokenizer(TEXTS)
    back = data.map(tokenizer.detokenize)
    assert [text.decode() for batch in values(back) for text in batch] == TEXTS


def test_mapped_with_a_sequence_length(make):
    tokenizer = make(sequence_length=3)
    data = tf.data.Dataset.from_tensor_slices(TEXTS)
    assert data.map(tokenizer).element_spec == tf.TensorSpec([3], tf.int32)
    assert data.batch(2).map(tokenizer).element_spec == tf.TensorSpec([None, 3], tf.int32)
    assert values(data.map(tokenizer)) == tokenizer(TEXTS).tolist()
    batches = values(data.batch(2).map(tokenizer))
    assert [row for batch in batches for row in batch] == tokenizer(TEXTS).tolist()


def test_token_strings_mapped(make):
    tokenizer = make(dtype="string")
    data = tf.data.Dataset.from_tensor_slices(TEXTS).map(tokenizer)
    assert data.element_spec == tf.TensorSpec([None], tf.string)
    assert [[token.decode() for token in row] for row in values(data)] == tokenizer(TEXTS)


# === Saving ===


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sequence_length": 5, "dtype": "string", "name": "mine"},
        {"add_prefix_space": True},
        {"unsplittable_tokens": ["</s>", "<unk>"]},
    ],
)
def test_serialized_and_back(make, options):
    tokenizer = make(**options)
    written = keras.saving.serialize_keras_object(tokenizer)
    assert written["registered_name"] == "opt_onnx>OPTTokenizer"
    again = keras.saving.deserialize_keras_object(json.loads(json.dumps(written)))
    assert again.get_config() == tokenizer.get_config()
    text = "quick the<unk></s>é"
    assert np.array(again(text)).tolist() == np.array(tokenizer(text)).tolist()


def test_a_pipeline_of_its_own_serialized_and_back(galactica_files):
    tokenizer = OPTTokenizer.from_files(galactica_files, sequence_length=9)
    written = json.loads(json.dumps(keras.saving.serialize_keras_object(tokenizer)))
    again = keras.saving.deserialize_keras_object(written)
    assert again.start_token_id is None
    assert again.files() == tokenizer.files()
    np.testing.assert_array_equal(again(HAND_PICKED), tokenizer(HAND_PICKED))


def test_assets(make, galactica_files, tmp_path):
    for tokenizer, names in (
        (make(add_prefix_space=True), {"vocabulary.json", "merges.txt"}),
        (OPTTokenizer.from_files(galactica_files), {"tokenizer.json", "special_tokens.json"}),
    ):
        folder = tmp_path / min(names)
        folder.mkdir()
        tokenizer.save_assets(folder)
        assert {path.name for path in folder.iterdir()} == names
        again = OPTTokenizer(add_prefix_space=tokenizer.add_prefix_space)
        again.load_assets(folder)
        assert again(HAND_PICKED) == tokenizer(HAND_PICKED)


def test_options_of_the_split_are_refused_for_a_pipeline_of_its_own(galactica_files):
    with pytest.raises(ValueError, match=r"do not apply to this tokenizer: its tokenizer\.json says"):
        OPTTokenizer.from_files(galactica_files, add_prefix_space=True)


@pytest.mark.parametrize("name", ["vocabulary", "merges"])
def test_a_configuration_reads_no_files(name):
    with pytest.raises(ValueError, match=f"may not read files, and {name} is '/etc/passwd'"):
        OPTTokenizer.from_config({name: "/etc/passwd"})


@pytest.mark.reference
def test_keras_hub_s_configuration_is_read(keras_hub, toy_vocabulary, toy_merges):
    theirs = keras_hub.models.OPTTokenizer(toy_vocabulary, toy_merges, sequence_length=7)
    ours = OPTTokenizer.from_config(theirs.get_config())
    assert (ours.sequence_length, ours.dtype, ours.add_prefix_space) == (7, "int32", False)
    ours.set_vocabulary_and_merges(theirs.vocabulary, theirs.merges)
    np.testing.assert_array_equal(ours(" quick"), theirs(" quick"))
