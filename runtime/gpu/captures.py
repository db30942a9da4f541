"""Turns between recording a CUDA graph and everything else that a process does with its GPUs.

While ONNX Runtime records a CUDA graph (`cudaStreamCaptureModeGlobal`), CUDA refuses other threads most
calls, copies and allocations on any GPU among them, and the recording fails with them.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from types import TracebackType


class CaptureGate:
    """Lets any number of threads use CUDA at once (`with gate:`), or one alone that records.

    The garbage collector may free buffers at any point of a thread, so that no use waits for what its
    own thread has begun: uses may be nested, also in a recording.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._users = 0
        self._waiting = 0  # to record
        self._recorder: int | None = None

    def __enter__(self) -> None:
        with self._lock:
            while self._recorder not in (None, threading.get_ident()):
                self._changed.wait()
            self._users += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._users -= 1
            if self._waiting and not self._users:
                self._changed.notify_all()

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Waits until no thread uses CUDA, and lets none do so inside. Not to be called in a use."""
        with self._lock:
            self._waiting += 1
            try:
                while self._users or self._recorder is not None:
                    self._changed.wait()
            finally:
                self._waiting -= 1
            self._recorder = threading.get_ident()
        try:
            yield
        finally:
            with self._lock:
                self._recorder = None
                self._changed.notify_all()


CAPTURES = CaptureGate()

if hasattr(os, "register_at_fork"):
    # The threads that were inside are not in the child, which frees buffers too.
    os.register_at_fork(after_in_child=CAPTURES.__init__)  # type: ignore[misc]
