"""Threads that share one engine: one steps, the others sleep, and none can harm another."""

from __future__ import annotations

import functools
import gc
import operator
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from runtime import GenerationCancelledError, GenerationTimeoutError, Generator
from runtime.engine.engine import Engine
from runtime.engine.request import Request
from runtime.engine.turns import Turns
from runtime.inputs import read_batch
from runtime.samplers import BeamSampler, GreedySampler, RandomSampler
from tests.runtime.engine.test_company import VOCABULARY, ChunkDecoder
from tests.runtime.engine_runs import begin, new_call


class SlowDecoder(ChunkDecoder):
    """Takes a while for each run, and tells how many rows it had and in which thread it was.

    Attributes:
        before, after: called before and after each run.
    """

    def __init__(self, seconds: float = 0.002) -> None:
        super().__init__(VOCABULARY, 3)
        self.seconds = seconds
        self.rows: list[int] = []
        self.threads: list[int] = []
        self.before: Callable[[], object] = lambda: None
        self.after: Callable[[], object] = lambda: None

    def append(self, cache: Any, token_ids: Any, new_lengths: Any, **options: Any) -> Any:
        self.before()
        self.rows.append(int((new_lengths > 0).sum()))
        self.threads.append(threading.get_ident())
        time.sleep(self.seconds)
        output = super().append(cache, token_ids, new_lengths, **options)
        self.after()
        return output


def prompt(*tokens: int, room: int = 12) -> dict[str, Any]:
    row = np.zeros((1, len(tokens) + room), int)
    row[0, : len(tokens)] = tokens
    return {"token_ids": row, "padding_mask": np.arange(row.shape[1])[None] < len(tokens)}


def generate(generator: Generator, *tokens: int, **options: Any) -> list[int]:
    found: list[int] = generator.generate(prompt(*tokens), stop_token_ids=None, **options)[
        "token_ids"
    ].tolist()
    return found


@pytest.fixture
def decoder() -> SlowDecoder:
    return SlowDecoder()


@pytest.fixture
def generator(decoder: SlowDecoder) -> Generator:
    return Generator(decoder, None, RandomSampler(seed=1))


def test_threads_share_steps(decoder: SlowDecoder, generator: Generator) -> None:
    alone = [generate(generator, i, i + 1) for i in range(8)]
    decoder.rows.clear()
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda i: generate(generator, i, i + 1), range(8)))
    assert together == alone
    # Each alone takes 12 runs. Those that come while the first is read share all the others'.
    assert len(decoder.rows) < 4 * 12
    assert max(decoder.rows) >= 4


def test_a_call_that_is_done_is_told_while_others_go_on(
    decoder: SlowDecoder, generator: Generator
) -> None:
    decoder.seconds = 0.01
    done: list[str] = []

    def run(name: str, room: int) -> None:
        generator.generate(prompt(1, 2, room=room), stop_token_ids=None)
        done.append(name)

    long = threading.Thread(target=run, args=("long", 30))
    long.start()
    time.sleep(0.03)
    run("short", 3)
    assert done == ["short"]
    long.join()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_signal_in_the_stepping_thread_leaves_the_others_texts_as_they_are(
    decoder: SlowDecoder, generator: Generator, when: str
) -> None:
    """Ctrl-C comes while the model runs for both; the other one's text is as alone.

    Also where the run has told the cache of its tokens already, and nobody has seen its logits.
    """
    alone = generate(generator, 4, 5)
    decoder.seconds = 0.01
    stepping: set[int] = set()
    results: dict[str, Any] = {}

    def interrupt() -> None:
        if threading.get_ident() in stepping and len(decoder.rows) > runs + 4:
            stepping.clear()
            raise KeyboardInterrupt

    def interrupted() -> None:
        stepping.add(threading.get_ident())
        try:
            generate(generator, 1, 2)
        except KeyboardInterrupt:
            results["interrupted"] = True

    runs = len(decoder.rows)
    setattr(decoder, when, interrupt)
    first = threading.Thread(target=interrupted)
    first.start()
    time.sleep(0.02)
    results["other"] = generate(generator, 4, 5)
    first.join()
    assert results == {"interrupted": True, "other": alone}
    assert generator.cache_bytes_in_use == 0


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="signals to one thread")
def test_a_signal_to_a_thread_that_sleeps_takes_it_out_of_the_line(
    decoder: SlowDecoder, generator: Generator
) -> None:
    """Else the turn would be given to it when it is gone, and all that come later would wait for it."""
    alone = generate(generator, 4, 5)
    turns, main = generator._turns, threading.get_ident()

    def interrupt() -> None:
        decoder.before = lambda: None
        while not turns._sleepers:
            time.sleep(0.001)
        signal.pthread_kill(main, signal.SIGINT)

    decoder.before = interrupt
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(generate, generator, 4, 5)
        while turns._holder is None:
            time.sleep(0.001)
        with pytest.raises(KeyboardInterrupt):
            turns.run(lambda: False)
        assert other.result() == alone
    assert not turns._sleepers
    assert turns._holder is None
    assert generate(generator, 4, 5) == alone


def test_the_turn_goes_to_who_has_slept_longest() -> None:
    stepping = threading.Semaphore(0)
    threads: list[str] = []

    class Stepped:
        def step(self) -> None:
            stepping.acquire()
            threads.append(threading.current_thread().name)

    turns = Turns(Stepped())  # type: ignore[arg-type]
    waiting = []
    for name in ("first", "second", "third"):
        done = functools.partial(operator.contains, threads, name)
        waiting.append(threading.Thread(target=turns.run, args=(done,), name=name))
        waiting[-1].start()
        while turns._holder is None or len(turns._sleepers) < len(waiting) - 1:
            time.sleep(0.001)
    stepping.release(3)
    for thread in waiting:
        thread.join()
    assert threads == ["first", "second", "third"]


@pytest.mark.parametrize("num_beams", [0, 2])
def test_what_a_signal_cut_in_half_is_not_chosen_again(decoder: SlowDecoder, num_beams: int) -> None:
    """Its sampler may have drawn already: the call says what happened, and its tokens stay."""
    sampler = BeamSampler(num_beams) if num_beams else GreedySampler()
    engine = Engine(decoder)
    call = begin(engine, new_call(decoder, [Request((1, 2), 12)], sampler))
    engine.step()
    accept, accepted = call.search.accept, []

    def interrupted(*arguments: Any) -> None:
        accept(*arguments)
        accepted.append(list(call.sequences[0].token_ids))
        if len(accepted) == 1:
            raise KeyboardInterrupt

    call.search.accept = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    engine.step()
    assert accepted == [call.sequences[0].token_ids]
    with pytest.raises(GenerationCancelledError, match="a signal came while tokens of this call were"):
        call.check_complete()


def test_an_error_of_one_calls_sampler_is_its_own(decoder: SlowDecoder, generator: Generator) -> None:
    class Failing(GreedySampler):
        def sample(self, logits: Any, generators: Any) -> Any:
            raise OSError("no more dice")

    alone = generate(generator, 4, 5)
    decoder.seconds = 0.01
    with ThreadPoolExecutor(2) as threads:
        other = threads.submit(generate, generator, 4, 5)
        time.sleep(0.03)
        generator.compile(sampler=Failing())
        with pytest.raises(OSError, match="no more dice"):
            generate(generator, 1, 2)
        assert other.result() == alone


def test_a_deadline_passes_while_a_call_waits_for_rows() -> None:
    decoder = SlowDecoder(0.01)
    size = 22 * 2 * decoder.hidden * 4
    generator = Generator(decoder, None, "greedy", max_cache_bytes=size)
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(generator.generate, prompt(1, room=20), stop_token_ids=None)
        time.sleep(0.02)
        with pytest.raises(GenerationTimeoutError, match="after 0 new tokens"):
            generate(generator, 2, timeout=0.03)
        assert len(other.result()["token_ids"][0]) == 21
    assert len(generate(generator, 2)[0]) == 13


def test_the_garbage_collector_may_leave_a_call_at_any_time(
    decoder: SlowDecoder, generator: Generator
) -> None:
    """Within the engine's own step, say: it must not wait for what its own thread holds."""
    with generator._turns._lock:
        call = generator._prepare(
            read_batch(prompt(1, 2)), generator._arguments(None, None, None, None)
        )
        generator._turns.leave(call)
    gc.collect()
    assert call.left
    assert generate(generator, 1, 2)
    assert generator.cache_bytes_in_use == 0
