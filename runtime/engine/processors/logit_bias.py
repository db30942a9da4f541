"""Numbers added to the logits of some tokens."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from graphs.shown import shown
from runtime.engine.processors.arguments import check_bias, check_token_ids
from runtime.engine.processors.processor import Processor, TokenIds

_MOST = 100  # OpenAI's


class LogitBias(Processor):
    """Adds a number to the logits of some tokens, as OpenAI's API and vLLM do.

    Args:
        logit_bias: `{id: number, …}`, the numbers from -100 to 100.
        vocabulary: tokens of the model.

    Raises:
        ValueError: if it is not. (vLLM takes other numbers for the nearest of these.)
    """

    def __init__(self, logit_bias: object, vocabulary: int) -> None:
        if not isinstance(logit_bias, Mapping):
            raise ValueError(f"logit_bias must map token ids to numbers, got {shown(logit_bias)}")
        ids = check_token_ids("the keys of logit_bias", [*logit_bias], vocabulary)
        values = [check_bias("each number of logit_bias", v, _MOST) for v in logit_bias.values()]
        self._ids = np.array(ids, np.int64)
        self._biases = np.array(values, np.float32)

    def process(self, token_ids: TokenIds, prompt_length: int, logits: NDArray[np.float32]) -> None:
        """Adds the numbers."""
        logits[self._ids] += self._biases
