"""Tokenizers that are a whole `tokenizer.json`: run as they are, saved, and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers

from runtime import BundleError
from runtime.bundle import load_bundle
from runtime.tokenization.pipeline import SpecialTokens
from runtime.tokenization.tokenizer import Tokenizer, byte_alphabet
from tests.runtime.tokenization.pieces import pieces
from tests.runtime.toy import edit_manifest

SPECIAL = ["<s>", "<pad>", "</s>", "[REF]"]


def pipeline() -> tokenizers.Tokenizer:
    """Bytes, the merge `a b`, single digits, NFKC, special tokens and an added one with a space."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *byte_alphabet(), "ab"])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b")]))
    backend.normalizer = normalizers.NFKC()
    digits = pre_tokenizers.Digits(individual_digits=True)
    steps = [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    backend.add_tokens(["\u00e9 \u4e16"])
    return backend


def files(start: int | None = None, **special: Any) -> dict[str, str]:
    values = {"start_token_id": start, "end_token_id": 2, "pad_token_id": 1, **special}
    return {"tokenizer.json": pipeline().to_str(), "special_tokens.json": json.dumps(values)}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_files(files())


def test_the_whole_pipeline_runs(tokenizer: Tokenizer) -> None:
    def tokens(text: str) -> list[str]:
        return [tokenizer.id_to_token(i) for i in tokenizer.encode(text)]

    assert tokens("ab b") == ["ab", "Ġ", "b"]
    assert tokens("ｃ１２") == ["c", "1", "2"]
    assert tokens("[REF]a</s>") == ["[REF]", "a", "</s>"]
    assert tokenizer.merges == ["a b"]
    assert tokenizer.vocabulary_size() == 4 + 256 + 1 + 1
    assert tokenizer.is_own_file


def test_special_ids(tokenizer: Tokenizer) -> None:
    assert (tokenizer.start_token_id, tokenizer.end_token_id, tokenizer.pad_token_id) == (None, 2, 1)
    assert tokenizer.special_token_ids == (0, 1, 2, 3)
    assert Tokenizer.from_files(files(start=0)).start_token_id == 0
    ab = tokenizer.token_to_id("ab")
    found = Tokenizer.from_files(files(end_token_id=ab, pad_token_id=ab, start=ab))
    assert (found.start_token_id, found.end_token_id, found.pad_token_id) == (ab, ab, ab)
    # A word that a model's configuration ends or pads with is a word.
    assert found.special_token_ids == (0, 1, 2, 3)
    assert found.decode([ab, 2, ab], skip_special_tokens=True) == "abab"


def test_an_added_token_is_spelled_even_in_letters_of_the_alphabet(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("aé 世a")
    assert len(ids) == 3
    assert tokenizer.token_bytes(ids[1]) == "é 世".encode()
    assert tokenizer.decode([2, *ids, 3], skip_special_tokens=True) == "aé 世a"
    assert tokenizer.decode([2, *ids, 3]) == "</s>aé 世a[REF]"


@pytest.mark.parametrize("token", ["é", "Zoé", "ĠĊ", "naïve"])
def test_added_tokens_of_the_alphabets_letters_alone(token: str) -> None:
    """Each letter stands for a byte, and none of them is meant."""
    backend = pipeline()
    backend.add_tokens([token])  # "é" has the id of its letter then
    added = Tokenizer.from_files({**files(), "tokenizer.json": backend.to_str()})
    token_id = added.token_to_id(token)
    assert added.encode(f"a{token}b") == [*added.encode("a"), token_id, *added.encode("b")]
    assert added.token_bytes(token_id) == token.encode()
    assert added.decode(added.encode(f"a{token}b")) == f"a{token}b"
    assert pieces(added, [token_id]) == [token, ""]


def test_ids_with_gaps_before_added_tokens() -> None:
    """The library would give the last one the id of `ab`."""
    values = json.loads(pipeline().to_str())
    del values["model"]["vocab"]["!"]
    with pytest.raises(ValueError, match=r"gives added tokens of tokenizer\.json the ids of others"):
        Tokenizer.from_files({**files(), "tokenizer.json": json.dumps(values)})


@given(st.lists(st.integers(0, 270), max_size=30), st.booleans())
def test_a_stream_is_decode(tokenizer: Tokenizer, ids: list[int], skip: bool) -> None:
    found = "".join(pieces(tokenizer, ids, skip_special_tokens=skip))
    assert found == tokenizer.decode(ids, skip_special_tokens=skip)


def test_save_and_load(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert tokenizer.save(tmp_path) == ["tokenizer.json", "special_tokens.json"]
    again = Tokenizer.from_folder(tmp_path)
    assert again.files() == tokenizer.files()
    assert again.encode("ab １[REF]é 世") == tokenizer.encode("ab １[REF]é 世")
    assert again.special_token_ids == tokenizer.special_token_ids


def test_a_bundle_may_hold_one(toy_bundle_copy: Path, tokenizer: Tokenizer) -> None:
    from graphs.manifest import FileEntry

    for name in tokenizer.save(toy_bundle_copy):
        entry = FileEntry.of(toy_bundle_copy / name)
        edit_manifest(toy_bundle_copy, lambda values, e=entry: values["tokenizer"].append(vars(e)))
    edit_manifest(toy_bundle_copy, lambda values: values.update(tokenizer=values["tokenizer"][2:]))
    loaded = load_bundle(toy_bundle_copy).tokenizer
    assert loaded is not None
    assert loaded.files() == tokenizer.files()
    edit_manifest(toy_bundle_copy, lambda values: values["tokenizer"].pop())
    with pytest.raises(BundleError, match=r"unknown kind of tokenizer: \['tokenizer\.json'\]"):
        load_bundle(toy_bundle_copy)


# === What is refused ===


@pytest.mark.parametrize(
    ("special", "message"),
    [
        ({"end_token_id": None}, r"end_token_id is None, no token of tokenizer\.json \(262 tokens\)"),
        ({"pad_token_id": 262}, "pad_token_id is 262, no token"),
        ({"start_token_id": -1}, "start_token_id is -1, no token"),
        ({"end_token_id": True}, "end_token_id is True, no token"),
        ({"other": 1}, r"special_tokens\.json is not valid: .*'other'"),
    ],
)
def test_special_tokens_that_are_none(special: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_files(files(**special))


@pytest.mark.parametrize("text", ["", "[]", "5", '{"end_token_id": 2}'])
def test_special_tokens_are_an_object(text: str) -> None:
    with pytest.raises(ValueError, match=r"special_tokens\.json is not valid"):
        Tokenizer.from_files({**files(), "special_tokens.json": text})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"tokenizer\.json is not JSON"),
        ("[]", r"tokenizer\.json is no tokenizer: it has no model"),
        ('{"model": null}', r"tokenizer\.json is no tokenizer: it has no model"),
        ('{"model": {"type": "WordLevel"}}', "its model is WordLevel, its pre-tokenizer None"),
    ],
)
def test_files_that_are_no_tokenizer(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_files({**files(), "tokenizer.json": text})


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("merges", [["a", "zz"]], r"tokenizer\.json is not valid"),
        ("end_of_word_suffix", "</w>", "is not byte-level BPE"),
        ("type", "Unigram", "its model is Unigram, its pre-tokenizer Digits [+] ByteLevel"),
    ],
)
def test_models_of_another_kind(place: str, value: Any, message: str) -> None:
    values = json.loads(pipeline().to_str())
    values["model"][place] = value
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_files({**files(), "tokenizer.json": json.dumps(values)})


def test_special_tokens_are_written_as_read() -> None:
    special = SpecialTokens(None, 2, 1)
    assert SpecialTokens.from_json(special.to_json()) == special
    assert special.ids == {1, 2}
