"""Functions of one's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphs.shown import shown
from runtime.engine.processors.processor import Processor, TokenIds


class FunctionProcessor(Processor):
    """Takes the logits that a function makes of the token ids and the logits.

    What it returns must depend on these alone: it is called for each sequence and beam, in any order.

    Args:
        function: is given the prompt's and the new tokens, a tuple, and the logits, float32
            [vocabulary], which it may change and return but not keep; it returns float32
            [vocabulary], in which minus infinity excludes a token.

    Raises:
        ValueError: if it cannot be called.
    """

    def __init__(self, function: Callable[[tuple[int, ...], NDArray[np.float32]], Any]) -> None:
        if not callable(function):
            raise ValueError(
                f"a logits processor must be a function (token_ids, logits) -> logits, got "
                f"{shown(function)}"
            )
        self._function = function

    @property
    def name(self) -> str:
        """The function's name, or that of its class."""
        return str(getattr(self._function, "__name__", type(self._function).__name__))

    def process(self, token_ids: TokenIds, prompt_length: int, logits: NDArray[np.float32]) -> None:
        """Takes the function's logits.

        Raises:
            ValueError: if they are not float32 [vocabulary], or have NaN or plus infinity among them.
        """
        ids = token_ids.tolist() if isinstance(token_ids, np.ndarray) else token_ids
        size = len(logits)
        found = self._function(tuple(ids), logits)
        if not isinstance(found, np.ndarray) or found.dtype != np.float32 or found.shape != (size,):
            raise ValueError(
                f"the logits processor {self.name} must return float32 logits of shape ({size},), got "
                f"{_kind(found)}"
            )
        if not np.maximum.reduce(found) < np.inf:  # NaN if any is
            count = np.count_nonzero(~(found < np.inf))
            raise ValueError(
                f"the logits processor {self.name} must return numbers or minus infinity, got {count} "
                f"of {size} logits that are NaN or plus infinity"
            )
        if found is not logits:
            np.copyto(logits, found)


def _kind(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    return shown(value)
