"""New tokens become less probable each time they come."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.engine.processors.arguments import check_bias
from runtime.engine.processors.processor import Processor, TokenIds, as_array


class FrequencyPenalty(Processor):
    """Subtracts a number from the logits of all new tokens so far, times how often they came.

    As in OpenAI's API and in vLLM; the prompt's tokens do not count.

    Args:
        frequency_penalty: from -2 to 2; above 0 against repetition.

    Raises:
        ValueError: if it is not.
    """

    def __init__(self, frequency_penalty: object) -> None:
        self._penalty = check_bias("frequency_penalty", frequency_penalty, 2)

    def process(self, token_ids: TokenIds, prompt_length: int, logits: NDArray[np.float32]) -> None:
        """Subtracts the penalty for each time."""
        ids, counts = np.unique(as_array(token_ids[prompt_length:]), return_counts=True)
        logits[ids] -= self._penalty * counts.astype(np.float32)
