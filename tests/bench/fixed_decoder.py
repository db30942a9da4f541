"""A model that looks only at the token before."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphs.contract import ModelConfig
from runtime.decoder import StepOutput


class FixedCache:
    """Counts tokens."""

    def __init__(self, batch: int, capacity: int) -> None:
        self.capacity = capacity
        self.lengths = np.zeros(batch, np.int32)

    def release(self, row: int, *, clean: bool = False) -> None:
        self.lengths[row] = 0


class FixedDecoder:
    """Says what a function of the fed tokens [n] gives, logits [n, vocabulary].

    Attributes:
        fed: shapes of the tokens of each append.
    """

    block_tokens = None
    chunk_tokens = 512
    spare_rows = 0
    keeps_slots = False

    def __init__(self, logits_of: Any, vocabulary_size: int = 300) -> None:
        self.config = ModelConfig(vocabulary_size, 1, 1, 1, 1, 512)
        self.logits_of = logits_of
        self.fed: list[tuple[int, ...]] = []

    def slot_capacity(self, tokens: int) -> int:
        return tokens

    def new_cache(self, batch: int, capacity: int) -> FixedCache:
        return FixedCache(batch, capacity)

    def append(
        self,
        cache: FixedCache,
        token_ids: Any,
        new_lengths: Any,
        *,
        first_row: int = 0,
        outputs: Any = None,
        hidden_states: bool = False,
        check: Any = None,
    ) -> StepOutput:
        self.fed.append(token_ids.shape)
        rows = slice(first_row, first_row + len(token_ids))
        cache.lengths[rows] += new_lengths
        if outputs is not None:
            return StepOutput(self.logits_of(token_ids.ravel()[outputs]).astype(np.float32))
        last = token_ids[np.arange(len(token_ids)), new_lengths - 1]
        found = np.zeros((len(cache.lengths), self.config.vocabulary_size), np.float32)
        found[rows] = self.logits_of(last)
        return StepOutput(found)
