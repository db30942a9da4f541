"""Which of the threads that wait for texts steps the engine.

There is no thread of the engine's own: of those that wait, one has the turn and steps it for all, and
the others sleep until theirs is done or the turn comes to them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from runtime.engine.call import Call
from runtime.engine.engine import Engine


class _Thread:
    """A thread that wants something done: it has the turn, or sleeps until it is woken."""

    __slots__ = ("_asleep", "done", "number")

    def __init__(self, done: Callable[[], bool]) -> None:
        self.done = done
        self.number = threading.get_ident()
        self._asleep = threading.Lock()
        self._asleep.acquire()

    def sleep(self) -> None:
        """Blocks until `wake`, which may have come before."""
        self._asleep.acquire()

    def wake(self) -> None:
        """Ends `sleep`; once."""
        self._asleep.release()


class Turns:
    """Lets any number of threads have one engine's calls done.

    Args:
        engine: to be stepped by one thread at a time.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()  # of what follows; never held while the engine steps
        self._holder: _Thread | None = None
        self._sleepers: deque[_Thread] = deque()
        self._new: deque[Call] = deque()

    def add(self, call: Call) -> None:
        """Gives the engine a call.

        Raises:
            ValueError, CacheMemoryError: see `Engine.check`.
        """
        self._engine.check(call)
        self._new.append(call)

    def run(self, done: Callable[[], bool]) -> None:
        """Has the engine stepped, by this thread or another one, until something is done.

        Args:
            done: looked at after each step, by any thread.

        Raises:
            RuntimeError: if this thread steps the engine already, and would wait for itself.
        """
        thread, holder = _Thread(done), self._holder
        if holder is not None and holder.number == thread.number:
            raise RuntimeError(
                "a processor or sampler that a generator calls, or a signal handler meanwhile, cannot "
                "use that generator itself: give it another one"
            )
        try:
            while not done():
                if self._holder is thread or self._take_or_sleep(thread):
                    while self._new:
                        self._engine.add(self._new.popleft())
                    self._engine.step()
                    if self._sleepers:
                        self._wake_done()
        finally:
            self._pass_on(thread)

    def leave(self, call: Call) -> None:
        """Has the engine forget a call that nobody wants any more.

        Waits for no thread: the garbage collector may call this in one that is in here already. Who has
        the turn frees what the call has, or who takes it next.
        """
        call.left = True
        thread = _Thread(lambda: True)
        if not self._lock.acquire(blocking=False):
            return
        try:
            if self._holder is not None:
                return
            self._holder = thread
        finally:
            self._lock.release()
        try:
            self._engine.release_ended()
        finally:
            self._pass_on(thread)

    def _take_or_sleep(self, thread: _Thread) -> bool:
        """Takes the turn if nobody has it; else sleeps until it is given, or the wish is done."""
        with self._lock:
            if self._holder is None:
                self._holder = thread
                return True
            self._sleepers.append(thread)
        thread.sleep()
        return self._holder is thread

    def _wake_done(self) -> None:
        with self._lock:
            for thread in [thread for thread in self._sleepers if thread.done()]:
                self._sleepers.remove(thread)
                thread.wake()

    def _pass_on(self, thread: _Thread) -> None:
        """Gives the turn, if a thread has it, to the one that has slept longest."""
        if not self._sleepers and self._holder is None:
            return
        with self._lock:
            if thread in self._sleepers:  # woken by a signal
                self._sleepers.remove(thread)
            if self._holder is thread:
                self._holder = self._sleepers.popleft() if self._sleepers else None
                if self._holder is not None:
                    self._holder.wake()
