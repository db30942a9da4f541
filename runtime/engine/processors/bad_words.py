"""Token sequences that must not be completed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from graphs.shown import shown
from runtime.engine.processors.arguments import check_token_ids
from runtime.engine.processors.completions import Completions
from runtime.engine.processors.processor import Processor, TokenIds

_NAME = "bad_words_ids"


class BadWords(Processor):
    """Excludes the last token of each sequence where the tokens before it are the others.

    Follows transformers' `NoBadWordsLogitsProcessor`: a sequence of one token is always excluded,
    unless that is an end token, which is left alone.

    Args:
        bad_words_ids: `[[id, …], …]`, at least one.
        vocabulary: tokens of the model.
        end_token_ids: tokens that end a text.

    Raises:
        ValueError: if the sequences are not of token ids.
    """

    def __init__(self, bad_words_ids: object, vocabulary: int, end_token_ids: object = ()) -> None:
        if not isinstance(bad_words_ids, (list, tuple)) or not bad_words_ids:
            raise ValueError(
                f"{_NAME} must be a list of at least one list of token ids, got {shown(bad_words_ids)}"
            )
        ends = check_token_ids("end_token_ids", end_token_ids, vocabulary)
        name = f"each sequence of {_NAME}"
        words = [check_token_ids(name, ids, vocabulary, empty=False) for ids in bad_words_ids]
        single = [ids[0] for ids in words if len(ids) == 1 and ids[0] not in ends]
        self._ids = np.array(single, np.int64)
        self._longer = Completions({ids: None for ids in words if len(ids) > 1})

    def process(self, token_ids: TokenIds, prompt_length: int, logits: NDArray[np.float32]) -> None:
        """Sets the logits of tokens that would complete a sequence to minus infinity."""
        if len(self._ids):
            logits[self._ids] = -np.inf
        for token, _ in self._longer.after(token_ids):
            logits[token] = -np.inf
