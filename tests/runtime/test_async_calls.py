"""Calls from an event loop: the same texts, shared runs, and an end when the task ends."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from runtime import GenerationCancelledError, GenerationTimeoutError, Generator
from runtime.async_calls import AsyncCalls, TaskCancelled
from runtime.samplers import RandomSampler

TEXTS = ["the", "a quick", "the king ate in the inn", ""]


@pytest.fixture
def seeded(generator: Generator) -> Generator:
    generator.compile(RandomSampler(seed=4))
    return generator


def test_texts_are_those_of_generate(seeded: Generator) -> None:
    async def main() -> list[Any]:
        return await asyncio.gather(*(seeded.agenerate(text, max_length=30) for text in TEXTS * 5))

    assert asyncio.run(main()) == [seeded.generate(text, max_length=30) for text in TEXTS * 5]


def test_pieces_are_those_of_stream(seeded: Generator) -> None:
    async def pieces(text: str) -> list[str]:
        return [piece async for piece in seeded.astream(text, max_length=30)]

    async def main() -> list[list[str]]:
        return await asyncio.gather(*map(pieces, TEXTS))

    assert asyncio.run(main()) == [list(seeded.stream(text, max_length=30)) for text in TEXTS]


def test_the_loop_goes_on_meanwhile(seeded: Generator) -> None:
    async def main() -> int:
        task = asyncio.ensure_future(seeded.agenerate(["the"] * 20, max_length=60, stop_token_ids=None))
        turns = 0
        while not task.done():
            await asyncio.sleep(0)
            turns += 1
        return turns

    assert asyncio.run(main()) > 3


def wait_until_idle(generator: Generator) -> None:
    deadline = time.monotonic() + 10
    while generator.cache_bytes_in_use and time.monotonic() < deadline:
        time.sleep(0.005)
        generator._turns.run(lambda: True)
    assert generator.cache_bytes_in_use == 0


def test_a_cancelled_task_ends_its_call_and_no_other(seeded: Generator) -> None:
    long: dict[str, Any] = {"max_length": 60, "stop_token_ids": None}

    async def main() -> str:
        task = asyncio.ensure_future(seeded.agenerate(["the"] * 30, **long))
        other = asyncio.ensure_future(seeded.agenerate("a quick", **long))
        while not seeded.cache_bytes_in_use:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        text: str = await other
        return text

    text = asyncio.run(main())
    assert text == seeded.generate("a quick", **long)
    wait_until_idle(seeded)


def test_a_stream_that_is_left_ends_its_call(seeded: Generator) -> None:
    async def main() -> list[str]:
        pieces = []
        stream = seeded.astream("the", max_length=60, stop_token_ids=None)
        async for piece in stream:
            pieces.append(piece)
            if len(pieces) == 3:
                break
        await stream.aclose()  # type: ignore[attr-defined]
        return pieces

    pieces = asyncio.run(main())
    assert pieces == list(seeded.stream("the", max_length=60, stop_token_ids=None))[:3]
    wait_until_idle(seeded)


def test_what_makes_the_pieces_is_told_that_nobody_wants_more() -> None:
    """A stream that is long would else be computed to its end."""
    told: queue.Queue[bool] = queue.Queue()

    def start(left: TaskCancelled) -> Iterator[str]:
        deadline = time.monotonic() + 2
        while not left.is_set() and time.monotonic() < deadline:
            yield "piece"
            time.sleep(0.001)
        told.put(left.is_set())

    async def main() -> None:
        stream = AsyncCalls().stream(start, None)
        assert await anext(stream) == "piece"
        await stream.aclose()
        assert await asyncio.to_thread(told.get, timeout=10)  # not because the loop is closed

    asyncio.run(main())


def test_limits_and_errors_come_as_from_generate(seeded: Generator) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="max_length must be"):
            await seeded.agenerate("the", max_length=0)
        with pytest.raises(ValueError, match=r"stream\(\) takes one string"):
            async for _ in seeded.astream(["the"]):  # type: ignore[arg-type]
                pass
        cancel = threading.Event()
        cancel.set()
        with pytest.raises(GenerationCancelledError):
            await seeded.agenerate("the", cancel=cancel)
        with pytest.raises(GenerationTimeoutError):
            await seeded.agenerate(["the"] * 50, max_length=60, timeout=1e-6)

    asyncio.run(main())


def test_the_loop_is_imported_where_it_is_needed_only(seeded: Generator) -> None:
    assert seeded._async_calls is None
