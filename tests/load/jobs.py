"""Calls of a generator of every kind, drawn at random but the same for a seed."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from runtime import Generator, samplers

TEXTS = (
    "",
    "x",
    "The import statement",
    "If the argument is a list,",
    "Return",
    "def f(x):\n    return",
    "Ein Fuß, två öron, 三",
    "A class that",
)
SAMPLERS: tuple[dict[str, Any], ...] = (
    {"class_name": "greedy", "config": {}},
    {"class_name": "random", "config": {"seed": 1, "temperature": 0.8}},
    {"class_name": "top_k", "config": {"k": 5, "seed": 2}},
    {"class_name": "top_p", "config": {"p": 0.9, "seed": 3}},
    {"class_name": "beam", "config": {"num_beams": 3}},
    {"class_name": "contrastive", "config": {"k": 4, "alpha": 0.5}},
)
KINDS = ("generate", "results", "batch", "stream", "abandoned")


@dataclass(frozen=True)
class Job:
    """One call: its kind, sampler (by number), prompts and length."""

    kind: str
    sampler: int
    texts: tuple[str, ...]
    max_length: int


class Turns:
    """Calls of one generator with different samplers, from any number of threads.

    The sampler is one for the whole generator, so setting it and beginning a call are done in turns;
    the calls then go on side by side with the samplers they began with.
    """

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._samplers = [samplers.deserialize(config) for config in SAMPLERS]
        self._begin = threading.Lock()

    def run(self, job: Job) -> Any:
        """What a job gives, in a form that can be compared."""
        if job.kind in ("stream", "abandoned"):
            return self._stream(job)
        batches = self._batches(job)
        options = {"max_length": job.max_length, "stop_token_ids": None}
        if job.kind == "results":
            results = self._generator.generate_results(batches, **options)
            return [(result.text, result.token_ids, result.finish_reason) for result in results]
        return self._generator.generate(batches, **options)

    def _batches(self, job: Job) -> Iterator[list[str]]:
        """The job's batch, which is first asked for when its call has begun."""
        self._begin.acquire()
        self._generator.compile(self._samplers[job.sampler])

        def batches() -> Iterator[list[str]]:
            self._begin.release()
            yield list(job.texts)

        return batches()

    def _stream(self, job: Job) -> list[str]:
        with self._begin:
            self._generator.compile(self._samplers[job.sampler])
            pieces = self._generator.stream(
                job.texts[0], max_length=job.max_length, stop_token_ids=None
            )
        if job.kind == "stream":
            return list(pieces)
        return [piece for piece, _ in zip(pieces, range(4), strict=False)]


def make_jobs(generator: Generator, count: int, seed: int = 0) -> list[Job]:
    """Jobs that fit the generator's model, every kind and every sampler in turn."""
    draws = random.Random(seed)
    tokenizer = generator.tokenizer
    assert tokenizer is not None
    jobs = []
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        sampler = number // len(KINDS) % len(SAMPLERS)
        texts = draws.sample(TEXTS, draws.randint(2, 5) if kind in ("batch", "results") else 1)
        longest = 1 + max(len(tokenizer.encode(text)) for text in texts)
        length = min(longest + draws.randint(1, 40), generator.config.max_sequence_length)
        jobs.append(Job(kind, sampler, tuple(texts), length))
    return jobs
