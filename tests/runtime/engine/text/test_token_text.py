"""Tokens as log-probabilities show them."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.engine.text.token_text import token_text
from runtime.tokenization.pipeline import bpe_pipeline
from runtime.tokenization.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(toy_bundle: Path) -> Tokenizer:
    return Tokenizer.from_folder(toy_bundle)


def test_words_and_special_tokens(tokenizer: Tokenizer) -> None:
    (token_id,) = tokenizer.encode(" the")
    assert token_text(tokenizer, token_id) == (" the", b" the")
    assert token_text(tokenizer, tokenizer.end_token_id) == ("</s>", b"</s>")


def test_parts_of_characters_show_their_bytes(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.token_to_id(letter) for letter in "Ã©"]  # of the alphabet of bytes
    texts = [token_text(tokenizer, i) for i in ids]
    assert texts == [("bytes:\\xc3", b"\xc3"), ("bytes:\\xa9", b"\xa9")]


def test_rows_beyond_the_vocabulary_stand_for_nothing(tokenizer: Tokenizer) -> None:
    assert token_text(tokenizer, 10**6) == ("", b"")
    assert 10**6 not in tokenizer._bytes_of


def test_another_vocabulary_has_other_bytes(tokenizer: Tokenizer) -> None:
    """Bytes that were looked up are forgotten with it."""
    vocabulary, h, e = dict(tokenizer.vocabulary), *map(tokenizer.token_to_id, "he")
    changed = Tokenizer(vocabulary, tokenizer.merges)
    assert changed.token_bytes(h) == b"h"
    changed._set_pipeline(bpe_pipeline({**vocabulary, "h": e, "e": h}, tokenizer.merges))
    assert changed.token_bytes(h) == b"e"
