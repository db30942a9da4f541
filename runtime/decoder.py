"""What the generation loop asks of a model: a cache, and appending tokens to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from graphs.contract import ModelConfig

IntArray = NDArray[np.integer[Any]]
FloatArray = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class StepOutput:
    """What a model says after new tokens.

    Attributes:
        logits: float32 [batch, vocabulary], for each row's last valid new token. The array may be
            reused by the next call: copy what is to outlive it. A row without new tokens has no
            logits; what is there in their place has no meaning.
        hidden_states: float32 [batch, sequence, hidden] after the final norm, or `None` where the
            caller did not ask for them.
    """

    logits: NDArray[np.float32]
    hidden_states: NDArray[np.float32] | None = None


class Cache(Protocol):
    """The keys and values of the tokens that a model has seen, row by row."""

    capacity: int
    lengths: NDArray[np.int32]

    def copy_rows(self, source: Any, rows: IntArray, targets: IntArray, first: int = 0) -> None:
        """Makes each row `targets[j]` a copy of what row `rows[j]` of a cache was.

        Args:
            source: a cache of the same model, which may be this one.
            rows: int [n], rows of the source.
            targets: int [n], rows of this cache, each once.
            first: slots before this one are known to be the same already.
        """


class Decoder(Protocol):
    """A language model that appends tokens to a cache and scores the next one."""

    config: ModelConfig

    def new_cache(self, batch: int, capacity: int) -> Any:
        """An empty cache of `batch` rows with room for `capacity` tokens each."""

    def append(
        self,
        cache: Any,
        token_ids: IntArray,
        new_lengths: IntArray,
        *,
        hidden_states: bool = False,
    ) -> StepOutput:
        """Appends tokens [batch, sequence], right-padded, to the rows of a cache.

        `new_lengths` [batch] says how many of each row are valid; a row may have none.
        `hidden_states` asks for those beside the logits.
        """
