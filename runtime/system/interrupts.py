"""Ctrl-C and SIGTERM: a command ends soon and leaves nothing, whatever native code is at work.

Python runs signal handlers between two bytecodes of the main thread: not while native code computes
there. And what a handler raises may be swallowed by a callback, or wait for a pool's threads. So a
thread watches, which the interpreter's own C handler wakes: where the process still runs half a second
after the signal, or at a second signal, it ends the children, undoes what is unfinished and ends the
process.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from runtime.system.standard_streams import print_error

GRACE_SECONDS = 0.5  # for the main thread to end by itself
CHILD_SECONDS = 0.4  # for children to end by themselves
COMMIT_SECONDS = 0.2  # for a rename that is under way
STOP = b"\0"  # no signal has this number
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)

_undoing: list[Callable[[], None]] = []
_ending = threading.Lock()  # held while something is put in its place, and from the end by force on


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to end; `exit_code` is the shell's, 128 and the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


@contextlib.contextmanager
def undone_when_ended(undo: Callable[[], None]) -> Iterator[None]:
    """Has `undo` called if the process is ended by force within the block.

    It is called on another thread while the block may still run, and the last one registered first;
    what the block does about other errors is its own business.
    """
    _undoing.append(undo)
    try:
        yield
    finally:
        _undoing.remove(undo)


@contextlib.contextmanager
def committing() -> Iterator[None]:
    """Around putting finished work in its place: never entered once the end by force has begun."""
    with _ending:
        yield


class Watch:
    """Watches for signals within a `with` block, on the main thread; elsewhere it does nothing.

    The first signal raises `Interrupted` in the main thread, later ones end the process. Signals that
    the process was started to ignore (`nohup`) stay ignored.

    Args:
        message: what to tell on standard error when ended by a signal.

    Attributes:
        signal: the number of the signal that came, `None` if none did.
        raising: whether a signal raises; else it is only noted, for work that is done.
    """

    def __init__(self, message: str) -> None:
        self.signal: int | None = None
        self.raising = True
        self._message = message
        self._told = threading.Lock()
        self._handlers: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    @property
    def exit_code(self) -> int:
        """128 and the number of the signal that came; SIGINT's if none did."""
        return 128 + (signal.SIGINT if self.signal is None else self.signal)

    def tell(self) -> None:
        """Tells the message on standard error, once."""
        if self._told.acquire(blocking=False):
            print_error(f"\n{self._message}")

    def end(self) -> int:
        """Tells the message and, if a signal came, ends the process; else returns the exit code.

        The interpreter's own end is left out: with TensorFlow's it takes more than a second.
        """
        self.tell()
        if self.signal is not None:
            _end_children()
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
            os._exit(self.exit_code)
        return self.exit_code

    def __enter__(self) -> Watch:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._stderr = os.dup(2)  # the process may send its own elsewhere for a while
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._thread = threading.Thread(target=self._watch, name="interrupts", daemon=True)
        self._thread.start()
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        self.raising = False
        if self.signal is not None or threading.current_thread() is not threading.main_thread():
            return
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.write(self._write, STOP)
        self._thread.join()
        for descriptor in (self._read, self._write, self._stderr):
            os.close(descriptor)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.signal is None:
            self.signal = number
            if self.raising:
                raise Interrupted(number)

    def _watch(self) -> None:
        while (byte := os.read(self._read, 1))[0] not in SIGNALS:
            if byte == STOP:
                return
        select.select([self._read], [], [], GRACE_SECONDS)
        _end_children()
        if _ending.acquire(timeout=COMMIT_SECONDS):
            for undo in reversed(_undoing):
                with contextlib.suppress(Exception):
                    undo()
        if self._told.acquire(blocking=False):
            with contextlib.suppress(OSError):
                os.write(self._stderr, f"\n{self._message}\n".encode())
        os._exit(128 + byte[0])


def _end_children() -> None:
    """Asks all child processes to end, and makes those that do not."""
    children = _running_children()
    for number, seconds in ((signal.SIGTERM, CHILD_SECONDS), (getattr(signal, "SIGKILL", None), 0.0)):
        if number is None or not children:
            return
        for child in children:
            with contextlib.suppress(OSError):
                os.kill(child, number)
        deadline = time.monotonic() + seconds
        while children and time.monotonic() < deadline:
            time.sleep(0.02)
            children &= _running_children()


def _running_children() -> set[int]:
    """Children, and theirs; none where the system has no `/proc`."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # "PID (NAME) STATE PARENT ...", where the name may hold anything
            state, parent = path.read_text(errors="replace").rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(path.parent.name)] = int(parent)
    found, new = set[int](), {os.getpid()}
    while new := {child for child, parent in parents.items() if parent in new} - found:
        found |= new
    return found
