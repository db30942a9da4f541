"""Text as rows of tokens with labels, for training the embedded preset and measuring perplexity."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from runtime.tokenization.tokenizer import Tokenizer


def pack_rows(
    tokenizer: Tokenizer, texts: Sequence[str], length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Texts end to end, each with an end token after it, cut into rows that begin with a start token.

    Where there is no start token, rows begin with an end token, as if a text went before. What does
    not fill a row is left out, unless no row is full.

    Args:
        tokenizer: of the model.
        texts: documents.
        length: tokens of a row; less if there are fewer tokens.

    Returns:
        Inputs and labels, both int64 [rows, length].

    Raises:
        ValueError: if there is no text.
    """
    stream: list[int] = []
    for ids in tokenizer.encode_batch([text for text in texts if text]):
        stream += [*ids, tokenizer.end_token_id]
    if not stream:
        raise ValueError("there is no text to pack")
    length = min(length, len(stream))
    rows = len(stream) // length
    labels = np.array(stream[: rows * length], np.int64).reshape(rows, length)
    first = tokenizer.end_token_id if tokenizer.start_token_id is None else tokenizer.start_token_id
    start = np.full((rows, 1), first, np.int64)
    return np.concatenate([start, labels[:, :-1]], axis=1), labels
