"""Several processors as one."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from runtime.engine.processors.distribution import largest_logit
from runtime.engine.processors.processor import Processor, TokenIds, as_array


class Chain(Processor):
    """Applies processors one after the other, and sees to it that a token is left to choose.

    Args:
        processors: in the order in which they are applied.
    """

    def __init__(self, processors: Iterable[Processor]) -> None:
        self._processors = tuple(processors)

    def process(self, token_ids: TokenIds, prompt_length: int, logits: NDArray[np.float32]) -> None:
        """Applies all.

        Raises:
            ValueError: if they exclude all tokens, or make a logit NaN or infinite.
        """
        ids = as_array(token_ids)
        with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is found below
            for processor in self._processors:
                processor.process(ids, prompt_length, logits)
        largest_logit(logits)
