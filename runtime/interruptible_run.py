"""Long runs of native code that end early: on a signal, a time limit or another thread's wish."""

from __future__ import annotations

import threading
from collections.abc import Callable

POLL_SECONDS = 0.05  # how often the reasons to end are looked at


def run_interruptibly(
    run: Callable[[], object], terminate: Callable[[], object], check: Callable[[], object]
) -> None:
    """Runs native code in a thread of its own, while this one stays open to signals.

    Python calls signal handlers, Ctrl-C's among them, between two instructions of the main thread, so
    not as long as that one is inside of native code.

    Args:
        run: blocks until the work is done, without the interpreter's lock.
        terminate: makes a `run` that is under way return or raise soon; called from this thread.
        check: called every now and then; what it raises ends the run.

    Raises:
        What `run` raises, or what `check` or a signal handler raised, once `run` has ended.
    """
    ended = threading.Event()
    failure: list[BaseException] = []

    def work() -> None:
        try:
            run()
        except BaseException as error:
            failure.append(error)
        finally:
            ended.set()

    thread = threading.Thread(target=work, name="interruptible run", daemon=True)
    try:
        thread.start()
        while not ended.wait(POLL_SECONDS):
            check()
    except BaseException:
        terminate()
        _await_end(thread, ended)
        raise
    _await_end(thread, ended)
    if failure:
        raise failure.pop()


def _await_end(thread: threading.Thread, ended: threading.Event) -> None:
    """Waits whatever signals come: the run writes to buffers that live as long as the caller."""
    while thread.ident is not None and not ended.is_set():
        try:
            ended.wait()
        except BaseException:  # a second Ctrl-C; the first is on its way
            continue
