"""Locks between processes and threads, on files; the system releases them when their holder dies."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # what disks without locks say

if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True

    def _wait_for_lock(descriptor: int) -> None:
        while not _try_lock(descriptor):
            time.sleep(0.05)

else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _wait_for_lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def open_lock(path: Path) -> int:
    """The descriptor of a lock's file, which is made if missing; a link is not followed.

    Raises:
        OSError: if it cannot be opened for writing, or is no regular file.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is no regular file")
    return descriptor


@contextlib.contextmanager
def locked(path: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds the lock of a file, which is made if missing and stays.

    Args:
        path: the file; its folder exists.
        on_wait: called once if another one holds the lock, before waiting for it.

    Raises:
        OSError: if the file cannot be opened for writing, or its disk has no locks.
    """
    descriptor = open_lock(path)
    try:
        if not _try_lock(descriptor):
            on_wait()
            _wait_for_lock(descriptor)
        yield
    finally:
        os.close(descriptor)  # which releases the lock too


class LockHeldError(RuntimeError):
    """Another one holds a lock; `holder` is its process id, `None` where that cannot be told."""

    def __init__(self, path: Path, holder: int | None) -> None:
        super().__init__(f"{path} is locked by process {holder or 'unknown'}")
        self.holder = holder


@contextlib.contextmanager
def passing_lock(path: Path) -> Iterator[None]:
    """Holds the lock of a file that is there only meanwhile; at once or not at all.

    The file says which process holds it. One that a killed process has left is replaced.

    Args:
        path: the file; its folder exists.

    Raises:
        LockHeldError: if another one holds it.
        OSError: if the file cannot be written, or its disk has no locks.
    """
    descriptor = _open_locked(path)
    try:
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        _remove_and_close(path, descriptor)


def _open_locked(path: Path) -> int:
    """The descriptor of a new, empty file at a path, and its lock."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _try_lock(descriptor):
                raise LockHeldError(path, _holder(descriptor))
            if _is_at(path, descriptor) and os.fstat(descriptor).st_size == 0:
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        # Its holder has removed it since it was opened, or was killed and has left it here.
        _remove_and_close(path, descriptor)


def _remove_and_close(path: Path, descriptor: int) -> None:
    """Removes the file before its lock goes, so that whoever waits for it finds that out."""
    with contextlib.suppress(PermissionError):  # Windows keeps open files
        if _is_at(path, descriptor):
            path.unlink()
    os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> int | None:
    for _ in range(10):
        with contextlib.suppress(ValueError, OSError):
            return int(os.read(descriptor, 20))
        time.sleep(0.01)  # it has locked the file and not yet written to it
    return None


def lock_open_file(path: Path, descriptor: int) -> bool:
    """Takes the lock of an open file at once or not at all; closing the file releases it.

    Returns:
        Whether the path still leads to that file: who held the lock before may have removed it.

    Raises:
        LockHeldError: if another one holds it.
        OSError: one of `NO_LOCKS` if the file's disk has no locks.
    """
    if not _try_lock(descriptor):
        raise LockHeldError(path, None)
    return _is_at(path, descriptor)
