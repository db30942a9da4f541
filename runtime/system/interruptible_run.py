"""Long runs of native code that end early: on a signal, a time limit or another thread's wish."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue

POLL_SECONDS = 0.05  # how often the reasons to end are looked at


class _Helper(threading.Thread):
    """Runs one thing after another, and waits among the idle ones in between.

    The C library gives each new thread memory of its own, so that a thread for each run would ask the
    system for all of a run's memory anew, in thousands of page faults.
    """

    def __init__(self) -> None:
        super().__init__(name="interruptible runs", daemon=True)
        self._work: SimpleQueue[Callable[[], object]] = SimpleQueue()

    def run(self) -> None:
        while True:
            self._work.get()()
            _IDLE.append(self)

    def give(self, work: Callable[[], object]) -> None:
        """Has this thread do something that raises nothing."""
        self._work.put(work)


_IDLE: list[_Helper] = []  # taken and given back by single operations, which need no lock

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_IDLE.clear)  # threads do not live on there


def _take_helper() -> _Helper:
    try:
        return _IDLE.pop()
    except IndexError:
        helper = _Helper()
        helper.start()
        return helper


class _Run:
    """A run and how far it is."""

    def __init__(self, run: Callable[[], object]) -> None:
        self.ended = threading.Event()
        self.failure: BaseException | None = None
        self._run = run
        self._lock = threading.Lock()
        self._started = self._dropped = False

    def work(self) -> None:
        """The run itself, unless it was dropped before; for the helper."""
        with self._lock:
            self._started = not self._dropped
        try:
            if self._started:
                self._run()
        except BaseException as error:
            self.failure = error
        finally:
            del self._run  # what it refers to is the caller's, not an idle thread's
            self.ended.set()

    def leave(self) -> None:
        """Sees to it that the run does not start if it has not; nobody waits for its end."""
        self._dropped = True

    def drop(self) -> None:
        """Waits for the end, whatever signals come, or sees to it that the run does not start.

        The run writes to buffers that live as long as the caller.
        """
        while True:
            try:
                with self._lock:
                    self._dropped = True
                if self._started:
                    self.ended.wait()
                return
            except BaseException:  # a second Ctrl-C; the first is on its way
                continue


def run_interruptibly(
    run: Callable[[], object],
    terminate: Callable[[], object] | None,
    check: Callable[[], object] | None = None,
) -> None:
    """Runs native code in another thread, while this one stays open to signals.

    Python calls signal handlers, Ctrl-C's among them, between two instructions of the main thread, so
    not as long as that one is inside of native code.

    Args:
        run: blocks until the work is done, without the interpreter's lock.
        terminate: makes a `run` that is under way return or raise soon; called from this thread. `None`
            where nothing can and `run` touches nothing of the caller's: it is left to itself then.
        check: called every now and then; what it raises ends the run.

    Raises:
        What `run` raises, or what `check` or a signal handler raised, once `run` has ended or is left.
    """
    state = _Run(run)
    try:
        _take_helper().give(state.work)
        while not state.ended.wait(POLL_SECONDS):
            if check is not None:
                check()
    except BaseException:
        if terminate is None:
            state.leave()
            raise
        try:
            terminate()
        finally:  # a second Ctrl-C may come here
            state.drop()
        raise
    if state.failure is not None:
        raise state.failure
