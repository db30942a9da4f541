"""The most probable tokens."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.engine.processors.kept import keep_where
from runtime.engine.processors.processor import Processor, TokenIds
from runtime.numbers import whole_number
from runtime.probabilities import largest_by_id


class TopK(Processor):
    """Keeps the k most probable tokens (Fan et al., 2018, https://arxiv.org/abs/1805.04833).

    Follows transformers' `TopKLogitsWarper`: all that are as probable as the last of them stay too,
    where `runtime.samplers.TopKSampler` keeps the lower ids. More than there are tokens keeps all.

    Args:
        top_k: k.

    Raises:
        ValueError: if it is not a whole number of at least 1.
    """

    def __init__(self, top_k: object) -> None:
        self._k = whole_number("top_k", top_k)

    def process(self, token_ids: TokenIds, prompt_length: int, logits: NDArray[np.float32]) -> None:
        """Excludes the others."""
        if self._k < len(logits):
            edge = logits[largest_by_id(logits, self._k)].min()
            keep_where(logits, logits >= edge)
