"""What a request becomes does not depend on the others: random requests come and go in one engine."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest

from runtime.call_limits import CallLimits
from runtime.engine.call import Call
from runtime.engine.engine import Engine
from runtime.engine.request import Request
from runtime.samplers import (
    BeamSampler,
    ContrastiveSampler,
    GreedySampler,
    RandomSampler,
    Sampler,
    TopKSampler,
    TopPSampler,
)
from tests.runtime.engine_runs import begin, run
from tests.runtime.fake_decoder import SequenceDecoder

VOCABULARY, POSITIONS = 24, 40


class ChunkDecoder(SequenceDecoder):
    """Reads prompts in parts of 4 tokens; all rows have room for all positions."""

    block_tokens = 4
    chunk_tokens = 8
    spare_rows = 2
    keeps_slots = True

    def slot_capacity(self, tokens: int) -> int:
        return POSITIONS


class RaisingSampler(GreedySampler):
    """Raises at its second token."""

    def sample(self, logits: Any, generators: Any) -> Any:
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == 2:
            raise ZeroDivisionError("the sampler's own")
        return super().sample(logits, generators)


def random_sampler(chance: random.Random) -> Sampler:
    seed = chance.randrange(100)
    return chance.choice(
        [
            GreedySampler(),
            RandomSampler(seed=seed),
            TopKSampler(k=chance.randint(1, 6), seed=seed, temperature=chance.choice([0.5, 1.0, 2.0])),
            TopPSampler(p=chance.random() or 1.0, seed=seed),
            BeamSampler(num_beams=chance.randint(1, 4), return_all_beams=chance.random() < 0.5),
            ContrastiveSampler(k=chance.randint(1, 4), alpha=chance.random()),
        ]
    )


BEGINNINGS = [tuple((3 * i + j * j) % VOCABULARY for j in range(17)) for i in range(3)]


def random_requests(chance: random.Random) -> list[Request]:
    """One to three prompts, some of which begin as others do, or are the same."""
    found = []
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        shared = chance.choice(BEGINNINGS)[: chance.choice([0, 0, 5, 8, 17])]
        own = tuple(chance.randrange(VOCABULARY) for _ in range(chance.randint(0 if shared else 1, 12)))
        prompt = (shared + own)[: POSITIONS - 1]
        limit = min(POSITIONS, len(prompt) + chance.randint(0, 10))
        stops = frozenset(chance.sample(range(VOCABULARY), chance.choice([0, 0, 1, 3])))
        found.append(Request(prompt, limit, stops))
        if chance.random() < 0.1:
            found.append(found[-1])
    return found


def result(call: Call) -> list[Any]:
    return [(s.token_ids, s.finish_reason, s.hypotheses) for s in call.sequences]


@pytest.mark.parametrize(
    ("count", "seed"),
    [(120, 1), (120, 2), pytest.param(2000, 3, marks=pytest.mark.slow)],
)
def test_each_request_is_what_it_is_alone(count: int, seed: int) -> None:
    """With cancellations, deadlines, errors of samplers, few slots, little memory for prefixes."""
    chance = random.Random(seed)
    decoder = ChunkDecoder(VOCABULARY, seed)
    token_bytes = 2 * decoder.hidden * 4
    engine = Engine(
        decoder, max_cache_bytes=14 * 41 * token_bytes, max_prefix_bytes=20 * 4, max_slots=12
    )
    waiting = count
    running: list[tuple[Call, Sampler, threading.Event]] = []
    ended = cut = failed = reused = 0
    while waiting or running:
        if waiting and (not running or chance.random() < 0.4):
            waiting -= 1
            sampler = RaisingSampler() if chance.random() < 0.05 else random_sampler(chance)
            requests, cancel = random_requests(chance), threading.Event()
            search = sampler.search(requests, VOCABULARY)
            timeout = 1e-4 if chance.random() < 0.05 else None
            call = Call(
                requests, search, CallLimits(timeout, cancel), priority=chance.choice([0, 0, 1])
            )
            begin(engine, call)
            running.append((call, sampler, cancel))
        if chance.random() < 0.05 and running:
            chance.choice(running)[2].set()
        if chance.random() < 0.03 and running:
            call = chance.choice(running)[0]
            call.left = True
        engine.step()
        for entry in [entry for entry in running if entry[0].ended]:
            running.remove(entry)
            call, sampler, _ = entry
            ended += 1
            if call.error is not None:
                failed += 1
                assert isinstance(sampler, RaisingSampler)
                assert isinstance(call.error, ZeroDivisionError)
                continue
            requests = [s.request for s in call.sequences]
            if isinstance(sampler, RaisingSampler):
                sampler = GreedySampler()
            alone = run(SequenceDecoder(VOCABULARY, seed), requests, sampler)
            reused += sum(s.cached_prompt_tokens for s in call.sequences)
            if call.cut_reason is None and not call.left:
                assert result(call) == result(alone)
                continue
            cut += 1
            if isinstance(sampler, BeamSampler):  # the best beams so far need not be the final ones
                continue
            for sequence, wanted in zip(call.sequences, alone.sequences, strict=True):
                assert sequence.token_ids == wanted.token_ids[: len(sequence.token_ids)]
    assert ended == count
    assert min(cut, failed, reused) > 0
    assert engine.prefixes is not None
    assert engine.prefixes.bytes_in_use <= 20 * 4
    assert_empty(engine)


def assert_empty(engine: Engine) -> None:
    """Slots, budget and queues are as in a new engine."""
    engine.step()
    assert engine.memory.bytes_in_use == 0
    assert engine._calls == []
    assert engine._scheduler.waiting == engine._scheduler.running == []
    for slots in engine._slots.values():
        assert slots.used == 0
        assert not slots.cache.lengths.any()
