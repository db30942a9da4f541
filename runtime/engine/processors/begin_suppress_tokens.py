"""Tokens that do not come first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.engine.processors.arguments import check_token_ids
from runtime.engine.processors.processor import Processor, TokenIds


class BeginSuppressTokens(Processor):
    """Excludes some tokens from being the first new one.

    Follows transformers' `SuppressTokensAtBeginLogitsProcessor`.

    Args:
        begin_suppress_tokens: their ids.
        vocabulary: tokens of the model.

    Raises:
        ValueError: if they are not token ids.
    """

    def __init__(self, begin_suppress_tokens: object, vocabulary: int) -> None:
        ids = check_token_ids("begin_suppress_tokens", begin_suppress_tokens, vocabulary)
        self._ids = np.array(ids, np.int64)

    def process(self, token_ids: TokenIds, prompt_length: int, logits: NDArray[np.float32]) -> None:
        """Sets their logits to minus infinity where there is no new token yet."""
        if len(token_ids) == prompt_length:
            logits[self._ids] = -np.inf
