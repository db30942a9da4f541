"""Tokens with a share of the most probable one's probability."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from runtime.engine.processors.distribution import largest_logit
from runtime.engine.processors.kept import keep_where
from runtime.engine.processors.processor import Processor, TokenIds
from runtime.numbers import share


class MinP(Processor):
    """Keeps tokens with at least a share of the most probable one's probability.

    Min-p sampling (Nguyen et al., 2024, https://arxiv.org/abs/2407.01082), transformers'
    `MinPLogitsWarper`. Logits are compared, which is exact: probabilities that float32 rounds to one
    number stay together in transformers.

    Args:
        min_p: the share; 1 keeps only the most probable, 0 keeps all.

    Raises:
        ValueError: if it is not a number from 0 to 1.
    """

    def __init__(self, min_p: object) -> None:
        least = share("min_p", min_p, zero=True)
        self._distance = math.log(least) if least else -math.inf

    def process(self, token_ids: TokenIds, prompt_length: int, logits: NDArray[np.float32]) -> None:
        """Excludes the others."""
        least = float(largest_logit(logits)) + self._distance
        edge = np.float32(least)
        if edge < least:
            edge = np.nextafter(edge, np.float32(np.inf))
        keep_where(logits, logits >= edge)
