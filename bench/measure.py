"""Timing greedy generation by a decoder, and the statistics that reports give."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphs.contract import ModelConfig
from runtime.decoder import Decoder


@dataclass(frozen=True)
class Spread:
    """Median, minimum and maximum of repeated measurements."""

    median: float
    minimum: float
    maximum: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The spread of at least one value."""
        values = list(values)
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class TimedRun:
    """One greedy generation.

    Attributes:
        prefill_seconds: from prompts to the first new token of each row, making the cache included.
        step_seconds: of each decode step, which gives every row one more token.
        token_ids: int64 [rows, new tokens].
    """

    prefill_seconds: float
    step_seconds: tuple[float, ...]
    token_ids: NDArray[np.int64]


def time_generation(
    decoder: Decoder, prompts: NDArray[np.int64], new_tokens: int, cache: Any = None
) -> TimedRun:
    """Generates greedily, without stop tokens: one prefill and `new_tokens - 1` decode steps.

    Args:
        decoder: the model.
        prompts: int64 [rows, length].
        new_tokens: for each row, at least 1.
        cache: an empty one of the decoder's to use; by default one is made.
    """
    rows, length = prompts.shape
    lengths, ones = np.full(rows, length, np.int32), np.ones(rows, np.int32)
    token_ids = np.empty((rows, new_tokens), np.int64)
    marks = [time.perf_counter()]
    if cache is None:
        cache = decoder.new_cache(rows, length + new_tokens)
    token_ids[:, 0] = decoder.append(cache, prompts, lengths).logits.argmax(axis=-1)
    marks.append(time.perf_counter())
    for i in range(1, new_tokens):
        logits = decoder.append(cache, token_ids[:, i - 1 : i], ones).logits
        token_ids[:, i] = logits.argmax(axis=-1)
        marks.append(time.perf_counter())
    prefill, *steps = np.diff(marks).tolist()
    return TimedRun(prefill, tuple(steps), token_ids)


def check_room(config: ModelConfig, prompt_tokens: int, new_tokens: int) -> None:
    """Raises `ValueError` where a row would have more tokens than the model has positions."""
    positions = config.max_sequence_length
    if prompt_tokens + new_tokens > positions:
        raise ValueError(
            f"{prompt_tokens} prompt tokens and {new_tokens} new ones are more than the model's "
            f"{positions} positions; lower --prompt-tokens or --new-tokens"
        )


def random_prompts(
    generator: np.random.Generator, vocabulary_size: int, rows: int, length: int
) -> NDArray[np.int64]:
    """Prompts of random tokens, int64 [rows, length]."""
    return generator.integers(0, vocabulary_size, (rows, length))
