"""Tokens as log-probabilities show them."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.engine.text.token_text import token_text
from runtime.tokenization.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(toy_bundle: Path) -> Tokenizer:
    return Tokenizer.from_folder(toy_bundle)


def test_words_and_special_tokens(tokenizer: Tokenizer) -> None:
    (token_id,) = tokenizer.encode(" the")
    assert token_text(tokenizer, token_id) == (" the", b" the")
    assert token_text(tokenizer, tokenizer.end_token_id) == ("</s>", b"</s>")


def test_parts_of_characters_show_their_bytes(tokenizer: Tokenizer) -> None:
    texts = [token_text(tokenizer, i) for i in tokenizer.encode("é")]
    assert texts == [("bytes:\\xc3", b"\xc3"), ("bytes:\\xa9", b"\xa9")]


def test_rows_beyond_the_vocabulary_stand_for_nothing(tokenizer: Tokenizer) -> None:
    assert token_text(tokenizer, 10**6) == ("", b"")
    assert 10**6 not in tokenizer._bytes_of


def test_another_vocabulary_has_other_bytes(tokenizer: Tokenizer, repository: Path) -> None:
    """Bytes that were looked up are forgotten with it."""
    changed = Tokenizer.from_files(tokenizer.files())
    token_id = tokenizer.token_to_id("h")
    assert changed.token_bytes(token_id) == b"h"
    other = Tokenizer.from_folder(repository / "exporter/presets/opt_tiny_en/assets/tokenizer")
    changed._set_pipeline(other._pipeline)
    assert changed.token_bytes(token_id) == other.token_bytes(token_id) != b"h"
