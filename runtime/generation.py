"""The generation loop: prompts in, tokens out, one step at a time.

Rows are independent: each has its own prompt, length limit, stop tokens, random generator and finish
reason, and what a row becomes does not depend on the rows beside it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from runtime.decoder import Decoder
from runtime.results import FinishReason
from runtime.samplers import Sampler


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


@dataclass
class Row:
    """A prompt on its way: its new tokens and why it ended, `None` while it runs."""

    request: RowRequest
    generator: np.random.Generator
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def __post_init__(self) -> None:
        if len(self.request.prompt) >= self.request.max_length:
            self.finish_reason = "length"

    def push(self, token_id: int) -> None:
        """Takes the token that was drawn for this row."""
        self.token_ids.append(token_id)
        if token_id in self.request.stop_token_ids:
            self.finish_reason = "stop"
        elif len(self.request.prompt) + len(self.token_ids) >= self.request.max_length:
            self.finish_reason = "length"


class GenerationRun:
    """One batch of rows through prefill and decode.

    Attributes:
        rows: the batch.
        prefill_seconds, decode_seconds: time spent so far; sampling counts as decoding.
    """

    def __init__(self, decoder: Decoder, requests: Sequence[RowRequest], sampler: Sampler) -> None:
        self._decoder = decoder
        self._sampler = sampler
        generators = row_generators(sampler.seed, [request.prompt for request in requests])
        self.rows = [Row(r, g) for r, g in zip(requests, generators, strict=True)]
        self.prefill_seconds = 0.0
        self.decode_seconds = 0.0

    def steps(self) -> Iterator[dict[int, int]]:
        """Yields the tokens of each step by row number, until every row has ended."""
        if not self._running():
            return
        started = time.perf_counter()
        prompts = [row.request.prompt for row in self.rows]
        lengths = np.array([len(prompt) for prompt in prompts], np.int32)
        token_ids = np.zeros((len(prompts), int(lengths.max())), np.int64)
        for i, prompt in enumerate(prompts):
            token_ids[i, : len(prompt)] = prompt
        # Rows of different lengths end at different slots; the longest decides the room.
        capacity = max(int(lengths.max()), *(row.request.max_length for row in self.rows))
        cache = self._decoder.new_cache(len(prompts), capacity)
        logits = self._decoder.append(cache, token_ids, lengths).logits
        self.prefill_seconds = time.perf_counter() - started

        next_ids = np.zeros((len(prompts), 1), np.int64)
        new_lengths = np.ones(len(prompts), np.int32)
        while True:
            started = time.perf_counter()
            drawn = self._draw(logits)
            for i, token_id in drawn.items():
                self.rows[i].push(token_id)
                next_ids[i, 0] = token_id
            self.decode_seconds += time.perf_counter() - started
            yield drawn
            if not self._running():
                return
            started = time.perf_counter()
            for i, row in enumerate(self.rows):
                new_lengths[i] = row.finish_reason is None
            logits = self._decoder.append(cache, next_ids, new_lengths).logits
            self.decode_seconds += time.perf_counter() - started

    def _running(self) -> list[int]:
        return [i for i, row in enumerate(self.rows) if row.finish_reason is None]

    def _draw(self, logits: NDArray[np.float32]) -> dict[int, int]:
        running = self._running()
        if len(running) < len(self.rows):
            logits = logits[running]
        generators = [self.rows[i].generator for i in running]
        token_ids = self._sampler.sample(logits, generators)
        return dict(zip(running, (int(t) for t in token_ids), strict=True))


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
