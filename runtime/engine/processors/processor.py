"""What the engine asks of a processor."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

TokenIds = Sequence[int] | NDArray[np.int64]


class Processor(Protocol):
    """Changes the logits of a next token, by the tokens before it.

    A processor keeps nothing from one call to the next: beams call it with different token ids in any
    order, and one may serve several sequences.
    """

    @abstractmethod
    def process(self, token_ids: TokenIds, prompt_length: int, logits: NDArray[np.float32]) -> None:
        """Changes the logits of the next token in place.

        Args:
            token_ids: the prompt with its start token, and the new tokens; all of them below the
                vocabulary. An int64 array spares the processors that count tokens making one.
            prompt_length: how many of them, from the first on, are the prompt.
            logits: float32 [vocabulary], contiguous; minus infinity for tokens that are excluded.
        """


def as_array(token_ids: TokenIds) -> NDArray[np.int64]:
    """Token ids as an int64 array; one that is given is not copied."""
    if isinstance(token_ids, np.ndarray):
        return token_ids
    return np.fromiter(token_ids, np.int64, len(token_ids))
