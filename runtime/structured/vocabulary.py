"""A model's vocabulary as llguidance takes it: the bytes of each token."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.structured.library import import_llguidance
from runtime.tokenization.tokenizer import Tokenizer

FORCED_CHARACTERS = 256  # of a text without a choice that are encoded; the first token is what is used
NO_TEXT = b"\xff"  # is in no UTF-8, and marks special tokens for llguidance


class GrammarVocabulary:
    """The tokens that texts are made of, under a model's ids. Making one takes some tenths of a second.

    One more id follows the model's, for the end of a text: which tokens stop a text is up to a request.
    Ids without a token and tokens that texts leave out, `</s>` say, are never allowed.

    Args:
        tokenizer: of any kind.
        size: rows of the model's logits; the tokenizer may have fewer or more tokens.

    Attributes:
        size: as given.
        backend: llguidance's `LLTokenizer`.
        words: 32-bit words of a mask.
        allowed: uint32 [words], the bits of tokens that texts are made of, least significant first.

    Raises:
        ImportError: without llguidance.
    """

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        llguidance = import_llguidance()
        self.size = size
        self.words = size // 32 + 1
        hidden = frozenset(tokenizer.special_token_ids)
        texts = [b"" if i in hidden else tokenizer.token_bytes(i) for i in range(size)]
        texts = [b"" if text.startswith(NO_TEXT) else text for text in texts]
        bits = np.zeros(self.words * 32, np.uint8)
        bits[:size] = [bool(text) for text in texts]
        self.allowed: NDArray[np.uint32] = np.packbits(bits, bitorder="little").view("<u4")
        self.backend: Any = llguidance.LLTokenizer(_Encoder(tokenizer, texts))


class _Encoder:
    """What llguidance asks for of a tokenizer written in Python: its `TokenizerWrapper`.

    Where a grammar leaves no choice, the text is encoded, and the first token is the only one that is
    allowed: the model sees words in the tokens in which it knows them.
    """

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, texts: list[bytes]) -> None:
        self.eos_token_id = len(texts)
        self.special_token_ids = [len(texts)]
        self.tokens = [*texts, b"<end of text>"]
        self._tokenizer = tokenizer
        self._texts = texts
        self._ids = {text: i for i, text in enumerate(texts) if text}
        self._longest = max(map(len, texts), default=0)

    def __call__(self, text: str) -> list[int]:
        text = text[:FORCED_CHARACTERS]
        data = text.encode()
        ids = self._tokenizer.encode(text)
        # A tokenizer may change text, leave it out or find special tokens in it.
        if b"".join(self._texts[i] for i in ids if i < len(self._texts)) == data:
            return ids
        return list(self._longest_tokens(data))

    def _longest_tokens(self, data: bytes) -> list[int]:
        """The longest token first, each time; ends with the end of a text where no token fits."""
        ids: list[int] = []
        while data:
            sizes = range(min(self._longest, len(data)), 0, -1)
            size = next((size for size in sizes if data[:size] in self._ids), 0)
            if not size:
                return [*ids, self.eos_token_id]
            ids.append(self._ids[data[:size]])
            data = data[size:]
        return ids
