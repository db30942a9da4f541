"""Files that a user named for results to go to: written in place, whatever they are.

Nothing is put beside them and renamed: a link leads where it leads, a device and a pipe stay what they
are, and a file keeps its owner, mode and access lists. What there was in a file stays until the first
result is there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from runtime.system.file_lock import NO_LOCKS, LockHeldError, lock_open_file
from runtime.system.interrupts import undone_when_ended
from runtime.system.standard_streams import print_error

_BINARY = getattr(os, "O_BINARY", 0)
_MOST_LINKS = 40


def check_output(option: str, path: str | None) -> None:
    """Fails before the work rather than after it where a result cannot be written.

    Args:
        option: which named the file.
        path: the file; `None` and `-`, standard output, are always fine.

    Raises:
        ValueError: if it is a folder, its folder is not there, or it may not be written.
    """
    if path is None or path == "-" or _descriptor(path) is not None:
        return
    target = Path(os.path.realpath(path))  # of a link that leads nowhere, where it would be made
    if target.is_dir() or path.endswith("/"):
        raise ValueError(f"{option}: {path} is a folder; name a file in it")
    if not target.parent.is_dir():
        folder = Path(path).parent
        missing = target.parent if folder.is_dir() else folder  # of a link's target, or as given
        raise ValueError(f"{option}: there is no folder {missing} to write into")
    exists = os.path.lexists(target)
    if not os.access(target if exists else target.parent, os.W_OK):
        what = path if exists else f"to the folder of {path}"
        raise ValueError(f"{option}: this user may not write {what}; name another file")


class OutputFile:
    """An open file that results are written to, by no other process of this kind at the same time.

    Use it within `open_output`.

    Attributes:
        name: as the user gave it.
        is_regular: whether what there was in it can be read, and replaced.
    """

    def __init__(self, option: str, name: str) -> None:
        self.name = name
        self._path = Path(os.path.realpath(name))
        self._created = self._begun = False
        self._descriptor = self._open(option)
        self.is_regular = _descriptor(name) is None and _is_regular(self._descriptor)

    @property
    def status(self) -> os.stat_result:
        """Of the open file."""
        return os.fstat(self._descriptor)

    def reader(self) -> BinaryIO:
        """What is in a regular file, from its beginning."""
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        return os.fdopen(os.dup(self._descriptor), "rb")

    def begin(self, size: int = 0) -> None:
        """Drops what a regular file had beyond its first `size` bytes; at the first call only.

        `write` calls it, so that without `begin` a file keeps what it had until there is something new.
        """
        if not self._begun:
            self._begun = True
            self._cut(size)

    def write(self, data: bytes) -> None:
        """Writes bytes, or none of them where the disk is full.

        Raises:
            OSError: naming the file; `BrokenPipeError` if nobody reads a pipe any more.
        """
        self.begin()
        start = os.lseek(self._descriptor, 0, os.SEEK_CUR) if self.is_regular else 0
        with self._named():
            try:
                left = memoryview(data)
                while left:
                    left = left[os.write(self._descriptor, left) :]
            except OSError:
                with contextlib.suppress(OSError):
                    self._cut(start)
                raise

    def close(self) -> None:
        """Waits until a regular file is on the disk; removes one that was made and not written to."""
        try:
            if self.is_regular and self._begun:
                with self._named():
                    _sync(self._descriptor)
        finally:
            self.remove_if_unused()
            os.close(self._descriptor)

    def remove_if_unused(self) -> None:
        """Removes the file if it was made here and nothing was written to it."""
        if self._created and not self._begun:
            self._path.unlink(missing_ok=True)

    def _cut(self, size: int) -> None:
        if self.is_regular:
            os.ftruncate(self._descriptor, size)
            os.lseek(self._descriptor, size, os.SEEK_SET)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.name) from None

    def _open(self, option: str) -> int:
        if (number := _descriptor(self.name)) is not None:
            return os.dup(number)
        while True:
            created, descriptor = _open_or_make(self.name)
            try:
                if not _is_regular(descriptor) or self._lock(descriptor, option):
                    self._created = created and os.fstat(descriptor).st_size == 0
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _lock(self, descriptor: int, option: str) -> bool:
        try:
            return lock_open_file(self._path, descriptor)
        except LockHeldError:
            raise ValueError(
                f"{option}: another process is writing to {self.name} right now; wait for it "
                "or name another file"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            print_error(
                f"Warning: the disk of {self.name} has no file locks ({error.strerror}); see to it "
                "that nothing else writes to that file"
            )
            return True


@contextlib.contextmanager
def open_output(option: str, name: str) -> Iterator[OutputFile]:
    """Opens a file for results. It is locked until the block ends.

    Args:
        option: which named the file, for messages.
        name: the file: a regular one, which is made if missing, a link to one, a pipe, a device, or
            one of this process's own streams, `/dev/stdout` or `/dev/fd/N`.

    Raises:
        ValueError: if another process holds its lock.
        OSError: if it cannot be opened or written.
    """
    file = OutputFile(option, name)
    try:
        with undone_when_ended(file.remove_if_unused):
            yield file
    finally:
        file.close()


def write_output(option: str, name: str, data: bytes) -> None:
    """Writes a whole result, in place of what a file had.

    Raises:
        ValueError, OSError: see `open_output`.
    """
    with open_output(option, name) as file:
        file.write(data)


def _open_or_make(name: str) -> tuple[bool, int]:
    """Whether a file was missing, and its descriptor; a pipe is waited for until somebody reads it."""
    try:
        mode = os.stat(name).st_mode
    except FileNotFoundError:
        return True, os.open(name, os.O_RDWR | os.O_CREAT | _BINARY, 0o666)
    # Without O_CREAT, which systems refuse for other users' files in /tmp.
    return False, os.open(name, (os.O_RDWR if stat.S_ISREG(mode) else os.O_WRONLY) | _BINARY)


def _is_regular(descriptor: int) -> bool:
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):  # nothing to wait for
            raise


def _descriptor(path: str) -> int | None:
    """Which of this process's open files a path means, as `/dev/stdout` and `/dev/fd/1` do.

    Opened by its name, a file would be written from its beginning, whatever the shell's `>>` says, and
    a socket could not be opened at all.
    """
    if sys.platform == "win32":
        return None
    folders = {"/dev/fd", os.path.realpath("/proc/self/fd"), os.path.realpath("/dev/fd")}
    for _ in range(_MOST_LINKS):
        folder, name = os.path.split(os.path.abspath(path))
        if name.isdecimal() and os.path.realpath(folder) in folders:
            return int(name)
        if not os.path.islink(path):
            return None
        path = os.path.join(os.path.realpath(folder), os.readlink(path))
    return None
