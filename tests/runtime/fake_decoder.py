"""A model whose logits and hidden states are random functions of the whole row so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphs.contract import ModelConfig
from runtime.decoder import StepOutput

# What the contract leaves open, in numbers that would not go unnoticed.
UNDEFINED = 1e9


class SequenceCache:
    """Holds the tokens themselves; copies exactly the slots that it is asked to copy."""

    def __init__(self, batch: int, capacity: int) -> None:
        self.capacity = capacity
        self.tokens = np.full((batch, capacity), -1)
        self.lengths = np.zeros(batch, np.int32)
        self.copied_slots: list[int] = []

    def copy_rows(self, source: SequenceCache, rows: Any, targets: Any, first: int = 0) -> None:
        if not len(targets):
            return
        last = int(source.lengths[rows].max())
        assert last <= self.capacity
        assert len(set(targets.tolist())) == len(targets)
        self.tokens[targets, first:last] = source.tokens[rows, first:last]
        self.lengths[targets] = source.lengths[rows]
        self.copied_slots.append(len(targets) * max(0, last - first))


class SequenceDecoder:
    """Gives each sequence of tokens its own logits and hidden state.

    Args:
        vocabulary: number of tokens.
        seed: of the function.
        spread: standard deviation of the logits.
    """

    hidden = 6

    def __init__(self, vocabulary: int, seed: int = 0, spread: float = 1.5) -> None:
        self.config = ModelConfig(vocabulary, 1, 1, self.hidden, 8, 64)
        self._seed = seed
        self._spread = spread
        self.caches: list[SequenceCache] = []
        self.appended: list[int] = []

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits [vocabulary] after these tokens."""
        return self._values(tokens, 0, self.config.vocabulary_size) * np.float32(self._spread)

    def state(self, tokens: Sequence[int]) -> np.ndarray:
        """Hidden state of the last of these tokens, with a mean so that cosines are not all small."""
        return self._values(tokens, 1, self.hidden) + np.float32(0.7)

    def _values(self, tokens: Sequence[int], kind: int, count: int) -> np.ndarray:
        generator = np.random.default_rng([self._seed, kind, *tokens])
        return generator.standard_normal(count).astype(np.float32)

    def new_cache(self, batch: int, capacity: int) -> SequenceCache:
        self.caches.append(SequenceCache(batch, capacity))
        return self.caches[-1]

    def append(
        self, cache: SequenceCache, token_ids: Any, new_lengths: Any, *, hidden_states: bool = False
    ) -> StepOutput:
        batch, sequence = token_ids.shape
        assert batch == len(cache.lengths)
        self.appended.append(int((new_lengths > 0).sum()))
        logits = np.full((batch, self.config.vocabulary_size), UNDEFINED, np.float32)
        states = np.full((batch, sequence, self.hidden), UNDEFINED, np.float32)
        for i, count in enumerate(new_lengths):
            for j in range(count):
                cache.tokens[i, cache.lengths[i]] = token_ids[i, j]
                cache.lengths[i] += 1
                states[i, j] = self.state(cache.tokens[i, : cache.lengths[i]])
            if count:
                logits[i] = self.logits(cache.tokens[i, : cache.lengths[i]])
        return StepOutput(logits, states if hidden_states else None)
