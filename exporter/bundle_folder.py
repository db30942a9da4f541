"""Writing a folder so that it is either whole or not there, whatever happens meanwhile.

Beside the target `bundle`, and only while it is written, lie `.bundle.lock`, which names the process,
`.bundle.partial`, and `.bundle.replaced` for a moment where two folders cannot be swapped in one step.
What a killed process leaves of them is recognised by its name, and by the lock being free.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from exporter.errors import ExportError
from graphs.manifest import MANIFEST_FILE
from runtime.system.file_lock import NO_LOCKS, LockHeldError, passing_lock
from runtime.system.interrupts import committing, undone_when_ended

FULL = (errno.ENOSPC, errno.EDQUOT)
NO_SWAP = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux's renameat2
MORE_ROOM = "free some room or choose an --output on another disk"


def check_target(target: Path, *, force: bool) -> None:
    """Refuses a target that exists, unless it is a bundle (or empty) and `force` is given.

    Raises:
        ExportError: saying why and what to do.
    """
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise ExportError(f"{target} exists and is not a folder; choose another --output")
    if not target.exists() or not any(target.iterdir()):
        return
    if not (target / MANIFEST_FILE).is_file():
        raise ExportError(f"{target} exists and is not a bundle; choose another --output")
    if not force:
        raise ExportError(f"{target} exists; replace it with --force or choose another --output")


def check_space(parent: Path, needed: int) -> None:
    """Raises `ExportError` where the disk has less room than the bundle takes."""
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise ExportError(
            f"the disk of {parent} has {_size(free)} free and the bundle takes {_size(needed)}; "
            f"{MORE_ROOM}"
        )


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside the target, put in its place when the block ends without an error.

    What stands at the target serves until then and is replaced as a whole. After an error or Ctrl-C
    nothing is left behind, not even folders above the target that were made for it; what a kill leaves,
    the next call with that target removes.

    Raises:
        ExportError: at once, if another process writes to the target; or if the disk is full.
    """
    place = _Place(Path(os.path.realpath(target)))
    with (
        _told_if_full(place),
        _parents(place.target.parent),
        _locked(place, target),
        undone_when_ended(place.clear),
    ):
        place.clear()
        try:
            with _told_if_full(place):  # here too: while there is what has been written
                place.partial.mkdir()
                yield place.partial
                _sync_tree(place.partial)
                with committing():
                    place.install()
                _sync(place.target.parent)
        finally:
            place.clear()


@dataclass(frozen=True)
class _Place:
    """A target and what lies beside it while it is written."""

    target: Path

    def _beside(self, kind: str) -> Path:
        return self.target.with_name(f".{self.target.name}.{kind}")

    @property
    def lock(self) -> Path:
        return self._beside("lock")

    @property
    def partial(self) -> Path:
        """What is not whole, or not needed any more."""
        return self._beside("partial")

    @property
    def replaced(self) -> Path:
        """What stood at the target: whole, as long as it has this name."""
        return self._beside("replaced")

    def install(self) -> None:
        """Puts the partial folder at the target; what stood there is what is partial then."""
        if not self.target.exists():
            self.partial.rename(self.target)
        elif not _swap(self.partial, self.target):
            self.target.rename(self.replaced)
            self.partial.rename(self.target)

    def clear(self) -> None:
        """Removes what is unfinished, and ends a replacement that stopped in the middle."""
        if self.replaced.exists():
            if self.target.exists():
                shutil.rmtree(self.partial, ignore_errors=True)
                self.replaced.rename(self.partial)
            else:
                self.replaced.rename(self.target)
        shutil.rmtree(self.partial, ignore_errors=True)


def _swap(first: Path, second: Path) -> bool:
    """Swaps two folders in one step; `False` where the system or the disk cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if _is_linux() else None
    if rename is None:
        return False
    paths = AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second)
    if rename(*paths, RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in NO_SWAP:
        return False
    raise OSError(code, os.strerror(code), str(second))


def _is_linux() -> bool:
    return sys.platform == "linux"


@contextlib.contextmanager
def _locked(place: _Place, target: Path) -> Iterator[None]:
    with undone_when_ended(lambda: place.lock.unlink(missing_ok=True)):
        lock = contextlib.ExitStack()
        try:
            lock.enter_context(passing_lock(place.lock))
        except LockHeldError as error:
            who = f"process {error.holder}" if error.holder else "another process"
            raise ExportError(
                f"{who} is writing {target} right now; wait for it or choose another --output"
            ) from None
        except OSError as error:
            if error.errno in NO_LOCKS:
                raise ExportError(
                    f"the disk of {target} has no file locks ({error.strerror}); choose an --output on "
                    "another disk and copy the bundle"
                ) from error
            raise
        with lock:
            yield


@contextlib.contextmanager
def _parents(folder: Path) -> Iterator[None]:
    """Makes a folder and those above it; removes the new ones again, where empty, after an error."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]

    def remove() -> None:
        for path in missing:
            with contextlib.suppress(OSError):  # another one has put something into it
                path.rmdir()

    with undone_when_ended(remove):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in missing:
                _sync(path.parent)
            yield
        except BaseException:
            remove()
            raise


@contextlib.contextmanager
def _told_if_full(place: _Place) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        parent = place.target.parent
        written = sum(p.stat().st_size for p in place.partial.rglob("*") if p.is_file())
        free = shutil.disk_usage(next(p for p in (parent, *parent.parents) if p.exists())).free
        raise ExportError(
            f"the disk of {parent} is full ({error.strerror}): {_size(written)} of the bundle were "
            f"written and {_size(free)} are free; {MORE_ROOM}"
        ) from error


def _size(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if not path.is_symlink():
            _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
