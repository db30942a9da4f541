"""What a forked process must not do with what it has inherited."""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Any

from runtime.errors import ForkedProcessError

_NATIVE: weakref.WeakSet[Any] = weakref.WeakSet()


def keep_in_children(native: Any) -> None:
    """Sees to it that a forked process never frees an object which owns threads.

    Threads do not live on in a forked process, and freeing their owner would wait for them to end:
    the process would hang, at the latest when it exits.
    """
    _NATIVE.add(native)


def _keep() -> None:
    for native in list(_NATIVE):
        # One reference that nothing gives back: module globals are emptied when Python exits.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(native))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep)


def check_process(owner: int) -> None:
    """Raises `ForkedProcessError` if this process was forked from the owner."""
    if os.getpid() != owner:
        raise ForkedProcessError(
            f"this Generator was made in process {owner} and is used in {os.getpid()}, which was "
            "forked from it: the threads of ONNX Runtime do not live on in a forked process. Make "
            "the Generator in the process that uses it (Generator.from_bundle), or start processes "
            "by multiprocessing's 'spawn' or 'forkserver', to which a Generator can be passed"
        )
