"""Where a folder is written before it is the target, and how it gets there: beside it or within it.

`Beside` is the usual way: a folder beside the target that is renamed, so that at any time the old
folder stands there or the new one. Some folders cannot be renamed, or somebody would notice: mount
points (a volume of a container), a shell's working folder, folders in one that may not be written to.
`Within` writes into a hidden folder of the target and then moves files, the manifest last: a process
that is killed between the first and the last leaves what nothing takes for a bundle, and the next
export with that target ends the replacement.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from graphs.manifest import MANIFEST_FILE, ManifestError, read_manifest
from graphs.plain_files import is_plain

NO_SWAP = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)
# Mount points; folders of a lower layer of overlayfs; those of others in folders like /tmp.
NO_RENAME = (errno.EBUSY, errno.EXDEV, errno.EPERM, errno.EACCES)
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux's renameat2
LOCK, PARTIAL, WHOLE, REPLACED = ".export.lock", ".export.partial", ".export.whole", ".export.replaced"
WITHIN_NAMES = (LOCK, PARTIAL, WHOLE, REPLACED)
DISKS_OWN = ("lost+found", ".snapshot")  # in the root of a volume, whoever uses it
MOUNTS = Path("/proc/self/mountinfo")


class Place(Protocol):
    """Paths of one of the two ways, and its steps."""

    @property
    def lock(self) -> Path:
        """Names the process that writes."""

    @property
    def partial(self) -> Path:
        """What is not whole, or not needed any more."""

    def install(self) -> None:
        """Puts the partial folder at the target; what stood there is no longer needed then."""

    def clear(self) -> None:
        """Removes what is unfinished, and ends a replacement that stopped in the middle."""


@dataclass(frozen=True)
class Beside:
    """A target that is renamed as a whole."""

    target: Path

    def _beside(self, kind: str) -> Path:
        return self.target.with_name(f".{self.target.name}.{kind}")

    @property
    def lock(self) -> Path:
        """See `Place`."""
        return self._beside("lock")

    @property
    def partial(self) -> Path:
        """See `Place`."""
        return self._beside("partial")

    @property
    def replaced(self) -> Path:
        """What stood at the target: whole, as long as it has this name."""
        return self._beside("replaced")

    def install(self) -> None:
        """See `Place`."""
        if not self.target.exists():
            self.partial.rename(self.target)
            return
        status = self.target.stat()
        if not _swap(self.partial, self.target):
            self.target.rename(self.replaced)
            self.partial.rename(self.target)
        _give_access(self.target, status)

    def clear(self) -> None:
        """See `Place`."""
        if self.replaced.exists():
            if self.target.exists():
                _remove(self.partial)
                self.replaced.rename(self.partial)
            else:
                self.replaced.rename(self.target)
        _remove(self.partial)


@dataclass(frozen=True)
class Within:
    """A target that stays the same folder and gets other files.

    Of what stands there, files of the old manifest go; what no export wrote stays.
    """

    target: Path

    @property
    def lock(self) -> Path:
        """See `Place`."""
        return self.target / LOCK

    @property
    def partial(self) -> Path:
        """See `Place`."""
        return self.target / PARTIAL

    @property
    def whole(self) -> Path:
        """A file that says that what is partial is whole, and only has to be moved."""
        return self.target / WHOLE

    @property
    def replaced(self) -> Path:
        """Has the old manifest, as long as files that it names may be there."""
        return self.target / REPLACED

    def has_leftovers(self) -> bool:
        """Whether another process is at work here, or one was killed."""
        return any(os.path.lexists(self.target / name) for name in WITHIN_NAMES)

    def take(self, folder: Path) -> None:
        """Takes over what was written elsewhere, which may be another disk."""
        self.partial.mkdir()
        for path in sorted(folder.iterdir()):
            shutil.move(path, self.partial / path.name)
        sync_tree(self.partial)

    def install(self) -> None:
        """See `Place`."""
        self.whole.touch()
        sync(self.target)
        self._finish()

    def clear(self) -> None:
        """See `Place`."""
        if self.whole.exists():
            self._finish()
        for folder in (self.partial, self.replaced):
            _remove(folder)

    def _finish(self) -> None:
        """Moves the files of the new folder; begun anew, it goes on where it was."""
        old, new = self.target / MANIFEST_FILE, self.partial / MANIFEST_FILE
        if new.exists() and old.exists():
            self.replaced.mkdir(exist_ok=True)
            old.replace(self.replaced / MANIFEST_FILE)
            sync(self.target)  # from here on this is no bundle
        for path in sorted(path for path in self.partial.rglob("*") if path.is_file() and path != new):
            place = self.target / path.relative_to(self.partial)
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)
        if new.exists():
            for name in _files(self.replaced) - _files(self.partial):
                if is_plain(self.target / name):
                    (self.target / name).unlink()
            sync(self.target)
            new.replace(old)  # from here on it is one again
        sync(self.target)
        self.whole.unlink()


def cannot_be_renamed(target: Path) -> bool:
    """Whether a folder is there and has to stay, see the top of this file."""
    return target.is_dir() and (
        _is_mount_point(target)
        or holds(target, _working_folder())
        or not os.access(target.parent, os.W_OK | os.X_OK)
    )


def holds(folder: Path, path: Path | None) -> bool:
    """Whether a path is a folder or lies below it, however both are spelled."""
    if path is None or not folder.exists():
        return False
    path = Path(os.path.realpath(path))
    return any(one.exists() and one.samefile(folder) for one in (path, *path.parents))


def is_vacant(folder: Path) -> bool:
    """Whether a folder has nothing but what its disk and unfinished exports have put there."""
    return all(path.name in (*DISKS_OWN, LOCK, PARTIAL) for path in folder.iterdir())


def sync_tree(folder: Path) -> None:
    """Waits until a folder and all in it are on the disk."""
    for path in folder.rglob("*"):
        if not path.is_symlink():
            sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """Waits until a file or the names in a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _files(folder: Path) -> set[str]:
    try:
        return {entry.name for entry in read_manifest(folder).files}
    except ManifestError:
        return set()


def _working_folder() -> Path | None:
    try:
        return Path.cwd()
    except OSError:  # it was deleted
        return None


def _is_mount_point(folder: Path) -> bool:
    """Also of folders of the same disk, which only Linux tells."""
    if folder.is_mount():
        return True
    try:
        lines = MOUNTS.read_bytes().splitlines()
    except OSError:
        return False
    points = (line.split(b" ")[4] for line in lines if line.count(b" ") > 4)
    plain = (re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), point) for point in points)
    return os.fsencode(os.path.realpath(folder)) in plain


def _give_access(folder: Path, status: os.stat_result) -> None:
    """The mode of the folder before it, and its owner where this user may say so."""
    with contextlib.suppress(OSError, AttributeError):  # no owners on Windows
        os.chown(folder, status.st_uid, status.st_gid)
    with contextlib.suppress(OSError):
        folder.chmod(stat.S_IMODE(status.st_mode))


def _remove(folder: Path) -> None:
    if folder.is_dir() and not folder.is_symlink():
        with contextlib.suppress(OSError):
            folder.chmod(0o700)  # an old one that was read-only
    shutil.rmtree(folder, ignore_errors=True)


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
