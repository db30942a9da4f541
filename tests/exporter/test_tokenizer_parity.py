"""Tokenizers against Hugging Face's, on the same folders and 2,000 strings of all sorts.

One folder holds `vocab.json` and `merges.txt` as OPT's repositories do, one a `tokenizer.json` of
Galactica's kind. `transformers.AutoTokenizer` reads the same folders.
"""

from __future__ import annotations

import json
import unicodedata
from types import SimpleNamespace

import numpy as np
import pytest
import tokenizers

from exporter import OPTTokenizer
from exporter.presets.tokenizer_files import hugging_face_tokenizer_files
from runtime.tokenization.tokenizer import Tokenizer
from tests.exporter.galactica import galactica_tokenizer, write_galactica_tokenizer
from tests.exporter.varied_texts import training_texts, varied_texts
from tests.runtime.tokenization.pieces import pieces

COUNT = 2000
VOCABULARY_SIZE = 4000
CONFIG = {"model_type": "opt", "eos_token_id": 2, "pad_token_id": 1}
OPT_CONFIG = {**CONFIG, "bos_token_id": 2}
GALACTICA_CONFIG = {**CONFIG, "bos_token_id": 0}
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]  # OPT's order


def special_token(content):
    """As the repositories of OPT write them."""
    marks = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
    return {"__type": "AddedToken", "content": content, **marks}


OPT_OPTIONS = {
    "errors": "replace",
    "unk_token": special_token("</s>"),
    "bos_token": special_token("</s>"),
    "eos_token": special_token("</s>"),
    "pad_token": special_token("<pad>"),
    "add_prefix_space": False,
    "add_bos_token": True,
    "tokenizer_class": "GPT2Tokenizer",
}


def write(folder, name, values):
    (folder / name).write_text(json.dumps(values), encoding="utf-8")


@pytest.fixture(scope="module")
def texts():
    found = varied_texts(COUNT)
    assert len(set(found)) == COUNT
    assert {unicodedata.category(c)[0] for text in found for c in text} >= set("CLMNPSZ")
    return found


@pytest.fixture(scope="module")
def trained():
    """A byte-level BPE of 4,000 tokens; `</s>` is special."""
    fast = tokenizers.Tokenizer(tokenizers.models.BPE())
    fast.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=SPECIAL,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train_from_iterator(training_texts(), trainer)
    model = json.loads(fast.to_str())["model"]
    return model["vocab"], [" ".join(rule) for rule in model["merges"]]


@pytest.fixture(scope="module")
def opt_folder(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("opt")
    vocabulary, merges = trained
    write(folder, "vocab.json", vocabulary)
    lines = ["#version: 0.2", *merges, ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    write(folder, "tokenizer_config.json", OPT_OPTIONS)
    write(folder, "config.json", OPT_CONFIG)
    return folder


@pytest.fixture(scope="module")
def galactica_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("galactica")
    write_galactica_tokenizer(folder, galactica_tokenizer(training_texts(), VOCABULARY_SIZE))
    write(folder, "config.json", GALACTICA_CONFIG)
    return folder


@pytest.fixture(scope="module", params=["opt", "galactica"])
def pair(request, transformers):
    """Ours and theirs of one folder."""
    folder = request.getfixturevalue(f"{request.param}_folder")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    ours = Tokenizer.from_files(hugging_face_tokenizer_files(folder, config))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert theirs.is_fast
    return SimpleNamespace(kind=request.param, ours=ours, theirs=theirs)


@pytest.fixture(scope="module")
def ours(trained):
    vocabulary, merges = trained
    return OPTTokenizer(vocabulary=vocabulary, merges=merges)


# === 2,000 strings ===


@pytest.mark.reference
def test_ids_equal_those_of_transformers(pair, texts):
    assert pair.ours.vocabulary_size() == len(pair.theirs) == VOCABULARY_SIZE
    expected = pair.theirs(texts, add_special_tokens=False)["input_ids"]
    for text, found, ids in zip(texts, pair.ours.encode_batch(texts), expected, strict=True):
        assert found == ids, repr(text)
        assert pair.ours.encode(text) == ids, repr(text)


@pytest.mark.reference
@pytest.mark.parametrize("skip", [False, True])
def test_text_comes_back_as_from_transformers(pair, texts, skip):
    for text, ids in zip(texts, pair.ours.encode_batch(texts), strict=True):
        expected = pair.theirs.decode(ids, skip_special_tokens=skip)
        assert pair.ours.decode(ids, skip_special_tokens=skip) == expected, repr(text)
        found = "".join(pieces(pair.ours, ids, skip_special_tokens=skip))
        assert found == expected, repr(text)


@pytest.mark.reference
@pytest.mark.parametrize("skip", [False, True])
def test_any_ids_are_decoded_as_by_transformers(pair, skip):
    """Characters cut anywhere, as a model may write them."""
    for ids in np.random.default_rng(4).integers(0, VOCABULARY_SIZE, (1000, 12)).tolist():
        expected = pair.theirs.decode(ids, skip_special_tokens=skip)
        assert pair.ours.decode(ids, skip_special_tokens=skip) == expected, ids


@pytest.mark.reference
def test_what_goes_before_a_prompt_is_what_transformers_puts_there(pair):
    start = pair.ours.start_token_id
    assert start == {"opt": 2, "galactica": None}[pair.kind]
    prefix = [] if start is None else [start]
    assert pair.theirs("").input_ids == prefix
    assert pair.theirs("the import").input_ids == prefix + pair.ours.encode("the import")


# === Galactica's own ===


def galactica_of(folder):
    return OPTTokenizer.from_files(hugging_face_tokenizer_files(folder, GALACTICA_CONFIG))


def test_galactica_s_pipeline(galactica_folder):
    """Exact tokens: a vocabulary and merges under GPT-2's split would give others, silently."""
    found = galactica_of(galactica_folder)
    assert found.is_own_file

    def tokens(text):
        return [found.id_to_token(i) for i in found.encode(text)]

    assert tokens("12") == ["1", "2"]
    assert tokens("ﬁ") == tokens("fi")
    assert tokens("ASPL1T-TH1S-Pl3A5EB") == ["A", "B"]
    assert tokens("[START_REF]</work>") == ["[START_REF]", "</work>"]
    assert tokens("()") == ["(", ")"]
    assert tokens("\n\n") == ["Ċ", "Ċ"]
    assert found.merges[0] == "Ġ Ġ"
    assert (found.start_token, found.end_token, found.pad_token) == (None, "</s>", "<pad>")
    assert found.special_tokens == ["</s>", "<pad>"]
    assert found.special_token_ids == tuple(range(8))
    assert found.decode(found.encode("a[END_REF]"), skip_special_tokens=True) == "a"


# === OPT's own ===


@pytest.mark.reference
def test_the_split_trap(trained, ours):
    """keras-hub takes the whole string as one word here; OPT was trained with the split."""
    newline = ours.token_to_id("Ċ")
    hello = ours.encode("Hello")
    assert ours.encode("Hello\n\nHello") == [*hello, newline, newline, *hello]


def test_every_byte_comes_back(ours, texts):
    """Text that is not in any vocabulary, without the reference implementation."""
    for text in texts:
        assert ours.detokenize(ours.encode(text)) == text


def test_saved_and_read_again_the_ids_are_the_same(ours, tmp_path, texts):
    assert ours.save(tmp_path) == ["vocabulary.json", "merges.txt"]
    again = OPTTokenizer(
        vocabulary=str(tmp_path / "vocabulary.json"), merges=str(tmp_path / "merges.txt")
    )
    assert again.vocabulary == ours.vocabulary
    assert again.merges == ours.merges
    assert again.encode_batch(texts) == ours.encode_batch(texts)


def test_the_toy_vocabulary_of_keras_s_documentation():
    """Its merges pass through tokens that it has no ids for, which keras-hub itself now refuses."""
    vocabulary = {"<pad>": 1, "</s>": 2, "Ġquick": 4, "Ġfox": 5}
    merges = ["Ġ q", "u i", "c k", "ui ck", "Ġq uick", "Ġ f", "o x", "Ġf ox"]
    ours = OPTTokenizer(vocabulary=vocabulary, merges=merges)
    assert ours("The quick brown fox jumped.").tolist() == [4, 5]
    assert ours([" quick", " fox"]) == [[4], [5]]
    assert ours.detokenize([4, 5]) == " quick fox"
    assert ours.vocabulary_size() == 4
    assert ours.get_vocabulary() == ["<pad>", "</s>", "Ġquick", "Ġfox"]
    assert (ours.start_token_id, ours.end_token_id, ours.pad_token_id) == (2, 2, 1)


@pytest.mark.reference
def test_the_toy_vocabulary_of_keras_hub_s_own_tests(keras_hub):
    """That of its `opt_tokenizer_test.py`, its ids and cases."""
    tokens = ["<pad>", "</s>", "air", "Ġair", "plane", "Ġat", "port"]
    merges = ["Ġ a", "Ġ t", "Ġ i", "Ġ b", "a i", "p l", "n e"]
    merges += ["Ġa t", "p o", "r t", "Ġt h", "ai r", "pl a", "po rt"]
    merges += ["Ġai r", "Ġa i", "pla ne"]
    pieces = [piece for rule in merges for piece in (*rule.split(" "), rule.replace(" ", ""))]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*tokens, *pieces]))}
    ours = OPTTokenizer(vocabulary=vocabulary, merges=merges)
    theirs = keras_hub.models.OPTTokenizer(vocabulary=vocabulary, merges=merges)
    for text in ("airplane at airport", " airplane at airport</s><pad>", "air", ""):
        assert ours(text).tolist() == np.asarray(theirs(text)).tolist()
        assert ours.detokenize(ours(text)) == theirs.detokenize(theirs(text)) == text
    assert [ours.id_to_token(i) for i in ours("airplane at airport")] == [
        *("air", "plane", "Ġat", "Ġair", "port")
    ]
    assert set(theirs.special_tokens) == set(ours.special_tokens)
    assert sorted(theirs.special_token_ids) == list(ours.special_token_ids)
