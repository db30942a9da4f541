"""New tokens that have been there become less probable."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.engine.processors.arguments import check_bias
from runtime.engine.processors.processor import Processor, TokenIds, as_array


class PresencePenalty(Processor):
    """Subtracts a number from the logits of all new tokens so far, however often they came.

    As in OpenAI's API and in vLLM; the prompt's tokens do not count.

    Args:
        presence_penalty: from -2 to 2; above 0 against repetition.

    Raises:
        ValueError: if it is not.
    """

    def __init__(self, presence_penalty: object) -> None:
        self._penalty = check_bias("presence_penalty", presence_penalty, 2)

    def process(self, token_ids: TokenIds, prompt_length: int, logits: NDArray[np.float32]) -> None:
        """Subtracts the penalty."""
        ids = as_array(token_ids[prompt_length:])
        logits[ids] -= self._penalty  # once for each, also where a token is there several times
