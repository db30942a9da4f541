"""The generation loop: prompts in, tokens out, one step at a time.

Rows are independent: each has its own prompt, length limit, stop tokens, random generator and finish
reason, and what a row becomes does not depend on the rows beside it.
"""

from __future__ import annotations

import functools
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np

from runtime.decoder import Decoder, StepOutput, TemperedCache
from runtime.probabilities import bounded_temperature
from runtime.results import CutReason, FinishReason
from runtime.token_draw import TokenDraw, TokenSampler


@dataclass(frozen=True)
class RowRequest:
    """What to do with one prompt.

    Attributes:
        prompt: token ids, at least one.
        max_length: tokens of prompt and answer together.
        stop_token_ids: tokens that end the row when drawn.
    """

    prompt: tuple[int, ...]
    max_length: int
    stop_token_ids: frozenset[int] = frozenset()

    def finish_reason(self, token_ids: Sequence[int]) -> FinishReason | None:
        """Why a row with these new tokens has ended, `None` if it goes on."""
        if token_ids and token_ids[-1] in self.stop_token_ids:
            return "stop"
        return "length" if len(self.prompt) + len(token_ids) >= self.max_length else None


@dataclass(frozen=True)
class Hypothesis:
    """One of the continuations that a search found for a row.

    Attributes:
        token_ids: the new tokens.
        score: sum of their log-probabilities.
        finish_reason: why it ended.
    """

    token_ids: tuple[int, ...]
    score: float
    finish_reason: FinishReason


@dataclass
class Row:
    """A prompt on its way: its new tokens and why it ended, `None` while it runs.

    `hypotheses` has all beams, best first, after a search that was asked for them.
    """

    request: RowRequest
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    hypotheses: tuple[Hypothesis, ...] | None = None

    def __post_init__(self) -> None:
        self.finish_reason = self.request.finish_reason(self.token_ids)

    def push(self, token_id: int) -> None:
        """Takes the token that was chosen for this row."""
        self.token_ids.append(token_id)
        self.finish_reason = self.request.finish_reason(self.token_ids)


class _Stopwatch:
    """Adds up the time spent inside; a `contextlib` manager would cost a step ten times as much."""

    __slots__ = ("_started", "seconds")

    def __init__(self) -> None:
        self.seconds = self._started = 0.0

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._started


class Run(ABC):
    """One batch of rows through prefill and decode.

    Attributes:
        rows: the batch.
        prefill_seconds: time spent on the prompts.
        cut_reason: why it ended before its rows did, if so; see `cut`.
    """

    def __init__(self, decoder: Decoder, requests: Sequence[RowRequest]) -> None:
        self._decoder = decoder
        self.rows = [Row(request) for request in requests]
        self.prefill_seconds = 0.0
        self.cut_reason: CutReason | None = None
        self._decode_time = _Stopwatch()

    @abstractmethod
    def steps(self) -> Generator[dict[int, int]]:
        """Yields the tokens of each step by row number, until every row has ended.

        The cache is taken with the first step; closing the generator frees it.
        """

    def cut(self, reason: CutReason) -> None:
        """Ends the rows that still run, after a step was refused; their tokens so far stay."""
        self.cut_reason = reason
        for i in self._running():
            self.rows[i].finish_reason = reason

    def _running(self) -> list[int]:
        return [i for i, row in enumerate(self.rows) if row.finish_reason is None]

    def _longest_prompt(self) -> int:
        return max(len(row.request.prompt) for row in self.rows)

    def _room(self) -> int:
        """Slots that a cache needs: rows end at different ones, and the longest decides."""
        return max(self._longest_prompt(), *(row.request.max_length for row in self.rows))

    def _prefill(
        self, capacity: int, temperature: float = 1.0, **options: bool
    ) -> tuple[Any, StepOutput]:
        """A cache of one row a prompt that holds the prompts, and what the model said.

        The temperature is that of the `BestLogits` of all steps with this cache.
        """
        started = time.perf_counter()
        prompts = [row.request.prompt for row in self.rows]
        lengths = np.array([len(prompt) for prompt in prompts], np.int32)
        token_ids = np.zeros((len(prompts), int(lengths.max())), np.int64)
        for i, prompt in enumerate(prompts):
            token_ids[i, : len(prompt)] = prompt
        cache = self._decoder.new_cache(len(prompts), capacity)
        if isinstance(cache, TemperedCache):
            cache.temperatures[:] = bounded_temperature(temperature)
        output = self._decoder.append(cache, token_ids, lengths, **options)
        self.prefill_seconds = time.perf_counter() - started
        return cache, output

    def _decoding(self) -> _Stopwatch:
        """Counts the time that is spent inside as decoding."""
        return self._decode_time

    @property
    def decode_seconds(self) -> float:
        """Time spent on decoding so far; choosing tokens counts as that."""
        return self._decode_time.seconds


class GenerationRun(Run):
    """Row by row, each next token drawn by a sampler from the logits after the last."""

    def __init__(self, decoder: Decoder, requests: Sequence[RowRequest], sampler: TokenSampler) -> None:
        super().__init__(decoder, requests)
        self._temperature = sampler.temperature
        generators = _RowGenerators(sampler.seed, [request.prompt for request in requests])
        self._draw = TokenDraw(sampler, generators, decoder.config.vocabulary_size)

    def steps(self) -> Generator[dict[int, int]]:
        """Yields the tokens of each step by row number, until every row has ended."""
        running = self._running()
        if not running:
            return
        cache, output = self._prefill(self._room(), self._temperature)
        next_ids = np.zeros((len(self.rows), 1), np.int64)
        new_lengths = np.zeros(len(self.rows), np.int32)
        new_lengths[running] = 1
        with self._decoding():
            drawn = self._draw(output, running)
        while True:
            for i, token_id in drawn.items():
                self.rows[i].push(token_id)
                next_ids[i, 0] = token_id
            yield drawn
            if ended := [i for i in running if self.rows[i].finish_reason is not None]:
                new_lengths[ended] = 0
                running = self._running()
                if not running:
                    return
            with self._decoding():
                output = self._decoder.append(cache, next_ids, new_lengths)
                drawn = self._draw(output, running)


class _RowGenerators(Sequence["np.random.Generator"]):
    """`row_generators`, made when the first is asked for.

    Greedy search asks for none, and a process that has just started is spared an import.
    """

    def __init__(self, seed: int | None, prompts: Sequence[tuple[int, ...]]) -> None:
        self._seed, self._prompts = seed, prompts

    @functools.cached_property
    def _made(self) -> list[np.random.Generator]:
        return row_generators(self._seed, self._prompts)

    def __len__(self) -> int:
        return len(self._prompts)

    @overload
    def __getitem__(self, row: int) -> np.random.Generator: ...

    @overload
    def __getitem__(self, row: slice) -> list[np.random.Generator]: ...

    def __getitem__(self, row: int | slice) -> np.random.Generator | list[np.random.Generator]:
        return self._made[row]


def row_generators(seed: int | None, prompts: Sequence[tuple[int, ...]]) -> list[np.random.Generator]:
    """A random generator for each row, which depends on the seed and the row's prompt only.

    The same prompt given several times gets a different generator each time, the first as if alone.
    """
    entropy = np.random.SeedSequence(seed).entropy
    seen: Counter[tuple[int, ...]] = Counter()
    generators = []
    for prompt in prompts:
        sequence = np.random.SeedSequence(entropy, spawn_key=(seen[prompt],))
        generators.append(np.random.default_rng(sequence))
        seen[prompt] += 1
    return generators
