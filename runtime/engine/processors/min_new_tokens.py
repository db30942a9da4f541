"""Texts that do not end too early."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.engine.processors.arguments import check_token_ids
from runtime.engine.processors.processor import Processor, TokenIds
from runtime.numbers import whole_number


class MinNewTokens(Processor):
    """Excludes the tokens that end a text until it has some new ones.

    Follows transformers' `MinNewTokensLengthLogitsProcessor`.

    Args:
        min_new_tokens: how many.
        end_token_ids: tokens that end a text.
        vocabulary: tokens of the model.

    Raises:
        ValueError: if the first is not a whole number of at least 0, or the others are not token ids.
    """

    def __init__(self, min_new_tokens: object, end_token_ids: object, vocabulary: int) -> None:
        self._count = whole_number("min_new_tokens", min_new_tokens, 0)
        ids = check_token_ids("end_token_ids", end_token_ids, vocabulary)
        self._ids = np.array(ids, np.int64)

    def process(self, token_ids: TokenIds, prompt_length: int, logits: NDArray[np.float32]) -> None:
        """Sets their logits to minus infinity where there are fewer new tokens."""
        if len(token_ids) - prompt_length < self._count:
            logits[self._ids] = -np.inf
