"""Tokens that have been there become less probable."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.engine.processors.arguments import check_factor
from runtime.engine.processors.processor import Processor, TokenIds, as_array


class RepetitionPenalty(Processor):
    """Divides positive logits of all tokens so far by a penalty, and multiplies negative ones with it.

    CTRL's penalty (Keskar et al., 2019, https://arxiv.org/abs/1909.05858) as transformers'
    `RepetitionPenaltyLogitsProcessor` has it: the prompt's tokens count too, how often does not.

    Args:
        repetition_penalty: above 1 against repetition, 1 without effect, below 1 for it.

    Raises:
        ValueError: if it is not a number above 0 that float32 holds.
    """

    def __init__(self, repetition_penalty: object) -> None:
        self._penalty = check_factor("repetition_penalty", repetition_penalty)

    def process(self, token_ids: TokenIds, prompt_length: int, logits: NDArray[np.float32]) -> None:
        """Makes the tokens so far less probable."""
        ids = as_array(token_ids)
        chosen = logits[ids]  # a token that is there several times gets the same value each time
        logits[ids] = np.where(chosen < 0, chosen * self._penalty, chosen / self._penalty)
