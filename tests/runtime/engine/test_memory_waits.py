"""What does not fit beside others waits for these, and becomes what it becomes alone."""

from __future__ import annotations

import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from runtime import CacheMemoryError, Generator
from runtime.bundle import Bundle
from runtime.engine import memory
from runtime.engine.call import Call
from runtime.engine.engine import Engine
from runtime.engine.memory import CacheMemory
from runtime.engine.request import Request
from runtime.samplers import BeamSampler, ContrastiveSampler, GreedySampler, RandomSampler, Sampler
from tests.runtime.engine_runs import begin, new_call, run, run_calls
from tests.runtime.fake_decoder import SequenceCache, SequenceDecoder
from tests.runtime.toy import HIDDEN

SAMPLERS = [GreedySampler(), RandomSampler(seed=3), BeamSampler(3), ContrastiveSampler(k=2)]
TOKEN_BYTES = 2 * 2 * HIDDEN * 4  # of the toy model


def token_ids(call: Call) -> list[list[int]]:
    return [sequence.token_ids for sequence in call.sequences]


@pytest.fixture
def most(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes that were promised, each time that some were."""
    promised: list[int] = []
    promise = CacheMemory.promise

    def noted(self: CacheMemory, *arguments: Any) -> None:
        promise(self, *arguments)
        promised.append(self.bytes_in_use)

    monkeypatch.setattr(CacheMemory, "promise", noted)
    return promised


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: type(sampler).__name__)
@pytest.mark.parametrize("sequences", [1, 2, 3])
def test_a_batch_larger_than_the_limit_runs_in_turns(
    sampler: Sampler, sequences: int, most: list[int]
) -> None:
    decoder = SequenceDecoder(9)
    requests = [Request(prompt, 16) for prompt in ((1, 2), (3,), (4, 5, 6), (3,), (1, 2), (7,))]
    wanted = token_ids(run(decoder, requests, sampler))
    call = new_call(decoder, requests, sampler)
    limit = sequences * call.search.rows * 17 * CacheMemory(decoder).token_bytes
    most.clear()
    engine = Engine(decoder, limit)
    run_calls(engine, call)
    assert token_ids(call) == wanted
    assert max(most) == limit
    assert engine.memory.bytes_in_use == 0


def test_a_waiting_call_begins_when_another_ends() -> None:
    decoder, size = SequenceDecoder(9), CacheMemory(SequenceDecoder(9)).token_bytes
    requests = [Request((1, 2), 12), Request((3,), 10), Request((4,), 5)]
    wanted = [token_ids(run(decoder, [request], GreedySampler())) for request in requests]
    engine = Engine(decoder, 13 * size)
    first, second, third = (new_call(decoder, [one], GreedySampler()) for one in requests)
    for call in (first, second, third):
        begin(engine, call)
    while not first.ended:
        assert engine.memory.bytes_in_use in (0, 13 * size)
        # Nor does the third overtake the second, which would wait for ever if others kept coming.
        assert second.sequences[0].rows == third.sequences[0].rows == []
        engine.step()
    engine.step()
    assert second.sequences[0].rows
    assert engine.memory.bytes_in_use == 11 * size
    while not third.ended:
        engine.step()
    assert [token_ids(call) for call in (first, second, third)] == wanted


@pytest.mark.parametrize("how", ["left", "cancelled", "failed"])
def test_whatever_ends_the_other_call(how: str) -> None:
    cancel = threading.Event()
    decoder, size = SequenceDecoder(9), CacheMemory(SequenceDecoder(9)).token_bytes
    wanted = token_ids(run(decoder, [Request((3,), 10)], GreedySampler()))
    engine = Engine(decoder, 41 * size)
    first = begin(engine, new_call(decoder, [Request((1, 2), 40)], GreedySampler(), cancel=cancel))
    second = begin(engine, new_call(decoder, [Request((3,), 10)], GreedySampler()))
    for _ in range(3):
        engine.step()
    assert second.sequences[0].rows == []
    if how == "left":
        first.left = True
    elif how == "cancelled":
        cancel.set()
    else:
        first.error = RuntimeError("its own")
    while not second.ended:
        engine.step()
    assert token_ids(second) == wanted
    assert engine.memory.bytes_in_use == 0


def test_what_waits_can_be_cancelled() -> None:
    cancel = threading.Event()
    decoder, size = SequenceDecoder(9), CacheMemory(SequenceDecoder(9)).token_bytes
    engine = Engine(decoder, 41 * size)
    first = begin(engine, new_call(decoder, [Request((1, 2), 40)], GreedySampler()))
    second = begin(engine, new_call(decoder, [Request((3,), 10)], GreedySampler(), cancel=cancel))
    engine.step()
    cancel.set()
    engine.step()
    assert (second.ended, second.cut_reason, token_ids(second)) == (True, "cancelled", [[]])
    assert not first.ended


def test_memory_that_comes_free_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """While others run: their ends may make room. With nothing running, nobody's does."""
    decoder, size = SequenceDecoder(9), CacheMemory(SequenceDecoder(9)).token_bytes
    requests = [Request((1, 2), 30), Request((3,), 10)]
    wanted = [token_ids(run(decoder, [request], GreedySampler())) for request in requests]
    available = 31
    monkeypatch.setattr(memory, "SMALL_BYTES", 1)
    monkeypatch.setattr(memory, "available_memory_bytes", lambda: available * size)
    engine = Engine(decoder)
    first, second = (new_call(decoder, [one], GreedySampler()) for one in requests)
    begin(engine, first)
    engine.step()
    available = 5
    begin(engine, second)
    while not first.ended:
        engine.step()
        assert second.error is None
        assert second.sequences[0].rows == []
    engine.step()
    with pytest.raises(CacheMemoryError, match=r"calls in flight may yet fill 0 bytes"):
        second.check_complete()
    available = 11
    again = new_call(decoder, requests[1:], GreedySampler())
    run_calls(engine, again)
    assert [token_ids(call) for call in (first, again)] == wanted


def test_only_the_first_of_those_that_wait_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, size = SequenceDecoder(9), CacheMemory(SequenceDecoder(9)).token_bytes
    monkeypatch.setattr(memory, "SMALL_BYTES", 1)
    monkeypatch.setattr(memory, "available_memory_bytes", lambda: 20 * size)
    engine = Engine(decoder)
    large, small = (new_call(decoder, [Request((1,), n)], GreedySampler()) for n in (30, 10))
    run_calls(engine, large, small)
    assert isinstance(large.error, CacheMemoryError)
    assert (small.error, len(small.sequences[0].token_ids)) == (None, 9)


def test_a_cache_that_the_system_refuses_is_made_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figure told that there was no room: fewer rows at a time may do."""
    decoder = SequenceDecoder(9)
    requests = [Request((i,), 10) for i in range(1, 7)]
    wanted = token_ids(run(decoder, requests, GreedySampler()))
    tried: list[int] = []
    new_cache = SequenceDecoder.new_cache

    def refuse(self: SequenceDecoder, batch: int, capacity: int) -> Any:
        tried.append(batch)
        if batch > 2:
            raise MemoryError("no more")
        return new_cache(self, batch, capacity)

    monkeypatch.setattr(SequenceDecoder, "new_cache", refuse)
    engine = Engine(decoder)
    call = new_call(decoder, requests, GreedySampler())
    run_calls(engine, call)
    assert call.error is None
    assert token_ids(call) == wanted
    assert tried[:3] == [6, 3, 1]
    assert engine.memory.bytes_in_use == 0


# === Threads ===


@pytest.fixture
def generator(bundle: Bundle, decoder: Any) -> Generator:
    """Has memory for one sequence of 40 tokens, or several shorter ones."""
    return Generator(decoder, bundle.tokenizer, "greedy", max_cache_bytes=41 * TOKEN_BYTES)


class SmallDecoder(SequenceDecoder):
    """Has memory for 50 tokens.

    Attributes:
        live: the caches that there are.
    """

    def __init__(self) -> None:
        super().__init__(9)
        self.live: weakref.WeakSet[SequenceCache] = weakref.WeakSet()

    def new_cache(self, batch: int, capacity: int) -> SequenceCache:
        if batch * capacity + sum(len(one.lengths) * one.capacity for one in self.live) > 50:
            raise MemoryError("full")
        cache = SequenceCache(batch, capacity)
        self.live.add(cache)
        return cache


def test_caches_of_those_that_wait_after_all_are_not_kept() -> None:
    """The third that comes does not fit, so that the second waits too: nothing is kept for it."""
    decoder = SmallDecoder()
    engine = Engine(decoder)
    calls = [new_call(decoder, [Request((1,), length)], GreedySampler()) for length in (10, 20, 30)]
    for call in calls:
        begin(engine, call)
    engine.step()
    assert [len(call.sequences[0].rows) for call in calls] == [1, 0, 0]
    assert [cache.capacity for cache in decoder.live] == [10]
    calls[1].left = calls[2].left = True
    last = new_call(decoder, [Request((1,), 45)], GreedySampler())
    run_calls(engine, last)
    last.check_complete()
    assert len(last.sequences[0].token_ids) == 44


def test_a_thread_waits_for_another_ones_stream(generator: Generator) -> None:
    options: dict[str, Any] = {"max_length": 40, "stop_token_ids": None}
    alone = [generator.generate(prompt, **options) for prompt in ("ab", "The quick")]
    stream = generator.stream("ab", **options)
    pieces = [next(stream), next(stream)]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(generator.generate, "The quick", **options)
        pieces += stream
        assert ["".join(pieces), waiting.result(60)] == alone
    assert generator.cache_bytes_in_use == 0


@pytest.mark.parametrize("how", ["closed", "left as it is"])
def test_a_stream_that_nobody_reads_on_keeps_nobody_waiting(generator: Generator, how: str) -> None:
    """Who waits has the other's steps done, too."""
    options: dict[str, Any] = {"max_length": 40, "stop_token_ids": None}
    alone = [generator.generate(prompt, **options) for prompt in ("ab", "The quick")]
    stream = generator.stream("ab", **options)
    pieces = [next(stream), next(stream)]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(generator.generate, "The quick", **options)
        if how == "closed":
            stream.close()
        assert waiting.result(60) == alone[1]
    if how != "closed":
        assert "".join([*pieces, *stream]) == alone[0]
    assert generator.cache_bytes_in_use == 0


def test_many_threads_in_memory_for_one(generator: Generator, most: list[int]) -> None:
    prompts = ["ab", "c", "The quick", "", "t"]
    lengths = [40, 25, 12, 20]
    jobs = [(prompts[i % 5], lengths[i % 4]) for i in range(20)]
    wanted = [generator.generate(p, max_length=n, stop_token_ids=None) for p, n in jobs]
    together = threading.Barrier(8)
    firsts = iter(range(8))

    def call(job: tuple[str, int]) -> str:
        if next(firsts, None) is not None:
            together.wait(60)
        prompt, length = job
        text: str = generator.generate(prompt, max_length=length, stop_token_ids=None)
        return text

    most.clear()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(call, jobs)) == wanted
    assert max(most) <= 41 * TOKEN_BYTES
    assert generator.cache_bytes_in_use == 0
