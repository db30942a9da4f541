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

from graphs.plain_files import is_plain

NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # what disks without locks say
POLL_SECONDS = 0.05  # how often a waiting process tries again

if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True

    def _unlock(descriptor: int) -> None:
        os.lseek(descriptor, 0, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(descriptor: int) -> None:
        # Closing alone releases nothing while a process that was forked meanwhile has the file open.
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def open_lock(path: Path) -> int:
    """The descriptor of a lock's file, made if missing; one that others could hold is not taken.

    Whoever may open a file may lock it, so this user alone may read it. Nothing that was planted in its
    place is opened: links are not followed, and pipes and devices not waited for.

    Raises:
        OSError: if it cannot be opened for writing, is no regular file, or is another user's.
    """
    if os.path.lexists(path) and not is_plain(path):
        raise OSError(f"{path} is a link or no regular file; remove it")
    flags = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_NOCTTY"))
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o600)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path} is no regular file; remove it")
        if sys.platform != "win32":
            if status.st_uid != os.geteuid():
                raise OSError(f"{path} is a lock of another user, with the id {status.st_uid}")
            if stat.S_IMODE(status.st_mode) & 0o077:  # of a version that let others read it
                with contextlib.suppress(OSError):  # some disks have no modes
                    os.fchmod(descriptor, 0o600)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


class LockStalledError(OSError):
    """A lock's holder has shown no progress for too long."""

    def __init__(self, path: Path, holder: int | None, seconds: float) -> None:
        who = f"process {holder}" if holder else "a process that cannot be told"
        super().__init__(
            f"{who} has held {path} for {seconds:.0f} s and shows no progress; let it go on or end it"
        )


@contextlib.contextmanager
def locked(
    path: Path,
    *,
    patience: float,
    progress: Callable[[], object] = lambda: None,
    on_wait: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Holds the lock of a file, which is made if missing, names the process meanwhile, and stays.

    Args:
        path: the file; its folder exists.
        patience: seconds to wait for a holder that shows no progress.
        progress: its value changes as long as a holder is at work.
        on_wait: called once if another one holds the lock, before waiting for it.

    Raises:
        LockStalledError: if the holder has shown no progress for that long.
        OSError: if the file cannot be opened, see `open_lock`, or its disk has no locks.
    """
    descriptor = _wait_for_lock(path, patience, progress, on_wait)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
        _release(descriptor)


def _wait_for_lock(
    path: Path, patience: float, progress: Callable[[], object], on_wait: Callable[[], None]
) -> int:
    """The descriptor of a lock that this process holds from now on."""
    seen, since, told = progress(), time.monotonic(), False
    while True:
        descriptor = open_lock(path)
        try:
            while not _try_lock(descriptor):
                if not told:
                    on_wait()
                    told = True
                time.sleep(POLL_SECONDS)
                if (now := progress()) != seen:
                    seen, since = now, time.monotonic()
                elif (waited := time.monotonic() - since) > patience:
                    raise LockStalledError(path, _holder(descriptor), waited)
            if _is_at(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        _release(descriptor)  # somebody has removed the file: others lock another one by now


def _release(descriptor: int) -> None:
    with contextlib.suppress(OSError):
        _unlock(descriptor)
    os.close(descriptor)


class LockHeldError(RuntimeError):
    """Another one holds a lock; `holder` is its process id, `None` where that cannot be told."""

    def __init__(self, path: Path, holder: int | None) -> None:
        super().__init__(f"{path} is locked by process {holder or 'unknown'}")
        self.holder = holder


@contextlib.contextmanager
def passing_lock(path: Path) -> Iterator[None]:
    """Holds the lock of a file that is there only meanwhile; at once or not at all.

    The file says which process holds it. One that a killed process has left is taken over.

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
    """The descriptor of an empty file at a path, and its lock."""
    while True:
        descriptor = open_lock(path)
        try:
            if not _try_lock(descriptor):
                raise LockHeldError(path, _holder(descriptor))
            if _is_at(path, descriptor):
                os.ftruncate(descriptor, 0)  # a killed process may have left it here
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        _release(descriptor)  # its holder has removed it since it was opened


def _remove_and_close(path: Path, descriptor: int) -> None:
    """Removes the file before its lock goes, so that whoever waits for it finds that out."""
    with contextlib.suppress(PermissionError):  # Windows keeps open files
        if _is_at(path, descriptor):
            path.unlink()
    _release(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> int | None:
    for _ in range(10):
        with contextlib.suppress(ValueError, OSError):
            os.lseek(descriptor, 0, os.SEEK_SET)
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
