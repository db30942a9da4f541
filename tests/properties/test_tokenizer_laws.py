"""The tokenizer beside the library's own pipeline, for any text with special tokens in it."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from runtime.tokenization.tokenizer import Tokenizer
from tests.runtime.tokenization.pieces import pieces

PIECES = st.text(max_size=12) | st.sampled_from(
    ["</s>", "<pad>", " </s> ", "<s>", "\u2028", "\r\n", "  ", "😀", "e\u0301", "\ufeff", "'s", "the"]
)
TEXT = st.lists(PIECES, max_size=8).map("".join)


@pytest.fixture(scope="module")
def tokenizer(toy_bundle: Path) -> Tokenizer:
    return Tokenizer.from_folder(toy_bundle)


@pytest.fixture(scope="module")
def library(toy_bundle: Path) -> tokenizers.Tokenizer:
    """GPT-2's pipeline, made by the library from the same files."""
    files = (str(toy_bundle / name) for name in ("vocabulary.json", "merges.txt"))
    pipeline = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(*files))
    pipeline.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    pipeline.decoder = tokenizers.decoders.ByteLevel()
    pipeline.add_special_tokens(["</s>", "<pad>"])
    return pipeline


@given(TEXT)
def test_ids_are_the_librarys_and_lead_back(
    tokenizer: Tokenizer, library: tokenizers.Tokenizer, text: str
) -> None:
    ids = tokenizer.encode(text)
    assert ids == library.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == text
    assert all(0 <= i < tokenizer.vocabulary_size() for i in ids)


@given(TEXT, TEXT)
def test_a_special_token_parts_a_text(tokenizer: Tokenizer, before: str, after: str) -> None:
    ids = tokenizer.encode(f"{before}</s>{after}")
    assert ids == [*tokenizer.encode(before), tokenizer.end_token_id, *tokenizer.encode(after)]


@given(TEXT)
def test_skipping_special_tokens_leaves_the_rest(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    kept = [i for i in ids if i not in tokenizer.special_token_ids]
    assert tokenizer.decode(ids, skip_special_tokens=True) == tokenizer.decode(kept)


@given(st.lists(st.integers(0, 299), max_size=40))
def test_a_stream_of_bytes_is_their_text(tokenizer: Tokenizer, ids: list[int]) -> None:
    """Whatever bytes the tokens stand for, UTF-8 or not."""
    found = "".join(pieces(tokenizer, ids, skip_special_tokens=False))
    whole = b"".join(map(tokenizer.token_bytes, ids))
    assert found == whole.decode(errors="replace")
