"""Tokens that are never drawn."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.engine.processors.arguments import check_token_ids
from runtime.engine.processors.processor import Processor, TokenIds


class SuppressTokens(Processor):
    """Excludes some tokens; follows transformers' `SuppressTokensLogitsProcessor`.

    Args:
        suppress_tokens: their ids.
        vocabulary: tokens of the model.

    Raises:
        ValueError: if they are not token ids.
    """

    def __init__(self, suppress_tokens: object, vocabulary: int) -> None:
        ids = check_token_ids("suppress_tokens", suppress_tokens, vocabulary)
        self._ids = np.array(ids, np.int64)

    def process(self, token_ids: TokenIds, prompt_length: int, logits: NDArray[np.float32]) -> None:
        """Sets their logits to minus infinity."""
        logits[self._ids] = -np.inf
