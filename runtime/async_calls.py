"""Calls that an event loop waits for: each in a thread that sleeps while another steps the engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from runtime.call_limits import CancelEvent

MAX_THREADS = 256  # calls beyond that wait for these, in the order in which they came


class TaskCancelled:
    """An event that is set when the task that waits for a call is cancelled, or the caller's own is.

    Args:
        own: the caller's, if there is one.
    """

    def __init__(self, own: CancelEvent | None = None) -> None:
        self._own = own
        self._left = False

    def set(self) -> None:
        """Ends the call at its next step."""
        self._left = True

    def is_set(self) -> bool:
        """Whether the call is to end."""
        return self._left or (self._own is not None and self._own.is_set())


class AsyncCalls:
    """The threads in which an event loop's calls are made; they start when the first are needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None

    async def call(self, run: Callable[[TaskCancelled], Any], own: CancelEvent | None) -> Any:
        """What `run` returns, which ends soon once the event that it is given is set."""
        left = TaskCancelled(own)
        future = asyncio.get_running_loop().run_in_executor(self._pool(), run, left)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            left.set()
            future.add_done_callback(_look_at_error)
            raise

    async def stream(
        self, start: Callable[[TaskCancelled], Iterator[str]], own: CancelEvent | None
    ) -> AsyncGenerator[str, None]:
        """The pieces of an iterator, which ends soon once the event that it is given is set."""
        left = TaskCancelled(own)
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[str | None] = asyncio.Queue()

        def give(piece: str | None) -> None:
            try:
                loop.call_soon_threadsafe(pieces.put_nowait, piece)
            except RuntimeError:  # the loop has been closed
                left.set()

        def run() -> None:
            try:
                for piece in start(left):
                    give(piece)
            finally:
                give(None)

        future = loop.run_in_executor(self._pool(), run)
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
            await future
        finally:
            left.set()
            future.add_done_callback(_look_at_error)

    def _pool(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(MAX_THREADS, "opt-onnx-calls")
            return self._threads


def _look_at_error(future: asyncio.Future[Any]) -> None:
    """Nobody waits for it any more, which asyncio would complain about."""
    if not future.cancelled():
        future.exception()
