"""A model whose logits and hidden states are random functions of the whole row so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphs.contract import ModelConfig
from runtime.decoder import BestLogits, LazyStepOutput, StepOutput

# What the contract leaves open, in numbers that would not go unnoticed.
UNDEFINED = 1e9


def best_logits(
    logits: np.ndarray, count: int, temperatures: np.ndarray | float = 1.0, seed: int = 0
) -> BestLogits:
    """What a device would say of logits [batch, vocabulary]: sums in its own order, ties in any."""
    batch, vocabulary = logits.shape
    shuffled = np.random.default_rng(seed).permutation(vocabulary)
    order = (-logits[:, shuffled]).argsort(axis=1, kind="stable")[:, :count]
    ids = shuffled[order]
    inverse = (np.float32(1) / np.broadcast_to(temperatures, batch).astype(np.float32))[:, None]
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = (logits - logits.max(axis=1, keepdims=True)) * inverse
    parts = np.array_split(np.exp(scaled), 7, axis=1)
    totals = np.sum([part.sum(axis=1) for part in parts[::-1]], axis=0)
    return BestLogits(np.take_along_axis(logits, ids, 1), ids, totals, vocabulary)


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

    def block_bytes(self, tokens: int) -> int:
        return tokens

    def read_block(self, row: int, start: int, stop: int, spare: Any = None) -> np.ndarray:
        block = self.tokens[row, start:stop].copy() if spare is None else spare
        block[:] = self.tokens[row, start:stop]
        return block

    def write_block(self, row: int, start: int, block: np.ndarray) -> None:
        self.tokens[row, start : start + len(block)] = block

    def release(self, row: int, *, clean: bool = False) -> None:
        self.lengths[row] = 0
        self.tokens[row] = -1


class BestCache(SequenceCache):
    """A cache of a decoder that gives the best logits."""

    def __init__(self, batch: int, capacity: int) -> None:
        super().__init__(batch, capacity)
        self.temperatures = np.ones(batch, np.float32)


class SequenceDecoder:
    """Gives each sequence of tokens its own logits and hidden state.

    Args:
        vocabulary: number of tokens.
        seed: of the function.
        spread: standard deviation of the logits.
    """

    hidden = 6
    block_tokens: int | None = None
    chunk_tokens = 64
    spare_rows = 0
    keeps_slots = False

    def __init__(self, vocabulary: int, seed: int = 0, spread: float = 1.5) -> None:
        self.config = ModelConfig(vocabulary, 1, 1, self.hidden, 8, 64)
        self._seed = seed
        self._spread = spread
        self.caches: list[Any] = []
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

    def slot_capacity(self, tokens: int) -> int:
        return tokens

    def new_cache(self, batch: int, capacity: int) -> SequenceCache:
        self.caches.append(SequenceCache(batch, capacity))
        return self.caches[-1]

    def append(
        self,
        cache: SequenceCache,
        token_ids: Any,
        new_lengths: Any,
        *,
        first_row: int = 0,
        outputs: Any = None,
        hidden_states: bool = False,
        check: Any = None,
    ) -> StepOutput:
        batch, sequence = token_ids.shape
        rows = len(cache.lengths)
        assert first_row + batch <= rows
        self.appended.append(int((new_lengths > 0).sum()))
        logits = np.full((rows, self.config.vocabulary_size), UNDEFINED, np.float32)
        states = np.full((batch, sequence, self.hidden), UNDEFINED, np.float32)
        everywhere = np.full((batch, sequence, self.config.vocabulary_size), UNDEFINED, np.float32)
        for i, count in enumerate(new_lengths):
            row = first_row + i
            for j in range(count):
                cache.tokens[row, cache.lengths[row]] = token_ids[i, j]
                cache.lengths[row] += 1
                states[i, j] = self.state(cache.tokens[row, : cache.lengths[row]])
                if outputs is not None:
                    everywhere[i, j] = self.logits(cache.tokens[row, : cache.lengths[row]])
            if count and outputs is None:
                logits[row] = self.logits(cache.tokens[row, : cache.lengths[row]])
        if outputs is not None:
            assert 0 <= min(outputs, default=0) <= max(outputs, default=0) < batch * sequence
            logits = everywhere.reshape(batch * sequence, -1)[np.asarray(outputs, np.int64)]
        return StepOutput(logits, states if hidden_states else None)


class BestDecoder(SequenceDecoder):
    """Tells the `best` largest logits, as a device does, and all of them where they are asked for.

    Attributes:
        steps: how often tokens were appended.
        reads: the steps after which all logits were read.
    """

    def __init__(self, vocabulary: int, best: int, seed: int = 0, spread: float = 1.5) -> None:
        super().__init__(vocabulary, seed, spread)
        self._best = best
        self.steps = 0
        self.reads: list[int] = []

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits as of float16, which tie now and then."""
        return super().logits(tokens).astype(np.float16).astype(np.float32)

    def new_cache(self, batch: int, capacity: int) -> BestCache:
        self.caches.append(BestCache(batch, capacity))
        return self.caches[-1]

    def append(self, cache: BestCache, *arguments: Any, **options: Any) -> StepOutput:
        output = super().append(cache, *arguments, **options)
        self.steps += 1
        step = self.steps
        if options.get("outputs") is not None:
            return output

        def read() -> np.ndarray:
            assert step == self.steps  # the device has not gone on
            self.reads.append(step)
            return output.logits

        best = best_logits(output.logits, self._best, cache.temperatures, seed=step)
        return LazyStepOutput(best, read, output.hidden_states)
