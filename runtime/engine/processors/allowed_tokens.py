"""Tokens that alone are drawn."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.engine.processors.arguments import check_token_ids
from runtime.engine.processors.kept import keep_only
from runtime.engine.processors.processor import Processor, TokenIds


class AllowedTokens(Processor):
    """Excludes all tokens but some; vLLM's `allowed_token_ids`.

    Args:
        allowed_token_ids: ids of those that stay, at least one.
        vocabulary: tokens of the model.

    Raises:
        ValueError: if they are not token ids.
    """

    def __init__(self, allowed_token_ids: object, vocabulary: int) -> None:
        ids = check_token_ids("allowed_token_ids", allowed_token_ids, vocabulary, empty=False)
        self._ids = np.array(ids, np.int64)

    def process(self, token_ids: TokenIds, prompt_length: int, logits: NDArray[np.float32]) -> None:
        """Sets the logits of all others to minus infinity."""
        keep_only(logits, self._ids)
