"""What the searches ask of a processor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Processor(Protocol):
    """Changes the logits of one row before a token is chosen by them.

    It keeps nothing from one call to the next that would change a result: a beam search asks for
    several continuations of one prompt, in any order.
    """

    def process(
        self, token_ids: Sequence[int], prompt_length: int, logits: NDArray[np.float32]
    ) -> None:
        """Changes the logits of the next token in place.

        Args:
            token_ids: of the prompt and of what has been written.
            prompt_length: how many of them are the prompt's.
            logits: float32 [vocabulary]; minus infinity rules a token out.
        """
