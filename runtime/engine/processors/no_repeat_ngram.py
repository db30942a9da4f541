"""No sequence of n tokens comes twice."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.engine.processors.processor import Processor, TokenIds, as_array
from runtime.numbers import whole_number


class NoRepeatNgram(Processor):
    """Excludes tokens that would complete n tokens which have been there in that order.

    Paulus et al., 2017 (https://arxiv.org/abs/1705.04304) for n of 3; follows transformers'
    `NoRepeatNGramLogitsProcessor`, which looks at the prompt too.

    Args:
        no_repeat_ngram_size: n; 1 excludes every token so far.

    Raises:
        ValueError: if it is not a whole number of at least 1.
    """

    def __init__(self, no_repeat_ngram_size: object) -> None:
        self._size = whole_number("no_repeat_ngram_size", no_repeat_ngram_size)

    def process(self, token_ids: TokenIds, prompt_length: int, logits: NDArray[np.float32]) -> None:
        """Sets the logits of tokens that would repeat a sequence to minus infinity."""
        size = self._size
        if len(token_ids) < size:
            return
        ids = as_array(token_ids)
        if size == 1:
            logits[ids] = -np.inf
            return
        # Places after which the last token stands; of those, the ones with the tokens before it too.
        places = (ids[size - 2 : -1] == ids[-1]).nonzero()[0] + (size - 1)
        for back in range(2, size):
            if not len(places):
                return
            places = places[ids[places - back] == ids[-back]]
        logits[ids[places]] = -np.inf
