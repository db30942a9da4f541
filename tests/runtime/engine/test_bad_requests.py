"""Requests that cannot be served, or not to their end: each its own error, in one sentence."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import pytest

from runtime import CacheMemoryError
from runtime.engine.engine import Engine
from runtime.engine.request import Request
from runtime.samplers import BeamSampler, GreedySampler, RandomSampler
from tests.runtime.engine.test_company import VOCABULARY, ChunkDecoder, assert_empty
from tests.runtime.engine_runs import begin, new_call, run, run_calls
from tests.runtime.fake_decoder import SequenceDecoder

LONG = Request(tuple(range(20)), 30)


def alone(request: Request) -> list[int]:
    return run(SequenceDecoder(VOCABULARY, 5), [request], GreedySampler()).sequences[0].token_ids


@pytest.fixture
def decoder() -> ChunkDecoder:
    return ChunkDecoder(VOCABULARY, 5)


def test_a_search_of_more_rows_than_there_are(decoder: ChunkDecoder) -> None:
    engine = Engine(decoder, max_slots=3)
    with pytest.raises(ValueError, match="a search of 4 rows for each prompt is more than the 3 rows"):
        engine.check(new_call(decoder, [LONG], BeamSampler(4)))
    call = new_call(decoder, [LONG, LONG], BeamSampler(3))  # one after the other
    run_calls(engine, call)
    assert [s.finish_reason for s in call.sequences] == ["length", "length"]
    assert_empty(engine)


def test_a_request_larger_than_all_memory_is_refused_before_its_turn(decoder: ChunkDecoder) -> None:
    engine = Engine(decoder, max_cache_bytes=25 * 2 * decoder.hidden * 4)
    with pytest.raises(CacheMemoryError, match="for 1 row of 30 tokens"):
        engine.check(new_call(decoder, [LONG], GreedySampler()))
    small = Request((1, 2, 3), 20)
    call = new_call(decoder, [small], GreedySampler())
    run_calls(engine, call)
    assert call.sequences[0].token_ids == alone(small)


def test_more_sequences_than_rows_take_turns(decoder: ChunkDecoder) -> None:
    engine = Engine(decoder, max_slots=2)
    requests = [Request((i, i + 1), 12) for i in range(7)]
    call = new_call(decoder, requests, GreedySampler())
    run_calls(engine, call)
    assert [s.token_ids for s in call.sequences] == [alone(request) for request in requests]


def test_a_deadline_while_waiting_for_a_row(decoder: ChunkDecoder) -> None:
    engine = Engine(decoder, max_slots=1)
    first = begin(engine, new_call(decoder, [LONG], GreedySampler()))
    engine.step()
    late = begin(engine, new_call(decoder, [Request((4, 5), 9)], GreedySampler(), timeout=1e-9))
    engine.step()
    assert late.ended
    assert late.cut_reason == "timeout"
    assert late.sequences[0].token_ids == []
    assert not first.ended
    while not first.ended:
        engine.step()
    assert first.sequences[0].token_ids == alone(LONG)
    assert_empty(engine)


@pytest.mark.parametrize("steps", [0, 1, 2, 4])
def test_cancellation_at_any_time(decoder: ChunkDecoder, steps: int) -> None:
    """Before the first step, between two parts of the prompt, and when there are tokens."""
    engine, cancel = Engine(decoder), threading.Event()
    other = begin(engine, new_call(decoder, [Request((9, 8), 30)], GreedySampler()))
    engine.step()  # from now on somebody waits for tokens, so that a step reads one part
    call = begin(engine, new_call(decoder, [LONG], RandomSampler(seed=1), cancel=cancel))
    for _ in range(steps):
        engine.step()
    cancel.set()
    engine.step()
    assert call.ended
    assert call.cut_reason == "cancelled"
    assert engine.memory.bytes_in_use == 31 * 2 * decoder.hidden * 4  # the other's
    while not other.ended:
        engine.step()
    assert other.sequences[0].token_ids == alone(Request((9, 8), 30))
    assert_empty(engine)


def test_cancellation_in_the_middle_of_a_run(decoder: ChunkDecoder) -> None:
    """A long run looks at the limits of the call that it serves alone."""
    cancel = threading.Event()
    append = decoder.append

    def cut(*arguments: Any, check: Any = None, **options: Any) -> Any:
        if cancel.is_set() or len(arguments[1][0]) > 1:
            cancel.set()
            check()
        return append(*arguments, **options)

    decoder.append = cut  # type: ignore[method-assign]
    engine = Engine(decoder)
    call = new_call(decoder, [LONG], GreedySampler(), cancel=cancel)
    run_calls(engine, call)
    assert (call.cut_reason, call.sequences[0].token_ids) == ("cancelled", [])
    assert_empty(engine)


def test_cancellation_after_the_end_changes_nothing(decoder: ChunkDecoder) -> None:
    engine, cancel = Engine(decoder), threading.Event()
    call = new_call(decoder, [LONG], GreedySampler(), cancel=cancel)
    run_calls(engine, call)
    cancel.set()
    engine.step()
    assert call.cut_reason is None
    call.check_complete()
    assert call.sequences[0].token_ids == alone(LONG)


def test_who_has_waited_long_comes_before_who_matters_more(decoder: ChunkDecoder) -> None:
    engine = Engine(decoder, max_slots=1)
    begun = begin(engine, new_call(decoder, [LONG], GreedySampler()))
    engine.step()
    calls = []
    for arrival, priority in ((100.0, 1), (101.0, 0), (112.0, 0), (100.5, 1), (103.0, -1)):
        call = new_call(decoder, [Request((3, 4), 4)], GreedySampler())
        call.arrival, call.priority = arrival, priority
        calls.append(begin(engine, call))
    order = []
    while not all(call.ended for call in calls):
        engine.step()
        order += [i for i, call in enumerate(calls) if call.ended and i not in order]
    assert begun.ended
    assert order == [4, 1, 0, 3, 2]


def test_a_model_that_fails_keeps_no_cache(decoder: ChunkDecoder) -> None:
    """The error, which a caller may keep, must not keep what is a GPU's memory."""
    decoder.keeps_slots = False  # type: ignore[misc]
    append = decoder.append

    def fail(*arguments: Any, **options: Any) -> Any:
        append(*arguments, **options)
        raise RuntimeError("no more memory")

    decoder.append = fail  # type: ignore[method-assign]
    engine = Engine(decoder)
    call = new_call(decoder, [LONG], GreedySampler())
    gc.disable()
    try:
        run_calls(engine, call)
        with pytest.raises(RuntimeError, match="no more memory") as raised:
            call.check_error()
        cache = weakref.ref(decoder.caches.pop())
        assert cache() is None
    finally:
        gc.enable()
    assert raised.value is call.error
