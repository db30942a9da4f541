"""Writing a folder so that it is either whole or not there, whatever happens meanwhile.

Beside the target `bundle`, and only while it is written, lie `.bundle.lock`, which names the process,
`.bundle.partial`, and `.bundle.replaced` for a moment where two folders cannot be swapped in one step;
in a target that cannot be renamed, `.export.lock` and the like, see `exporter.output_place`. What a
killed process leaves of them is recognised by its name, and by the lock being free.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from exporter.errors import ExportError
from exporter.output_place import (
    DISKS_OWN,
    NO_RENAME,
    WHOLE,
    WITHIN_NAMES,
    Beside,
    Place,
    Within,
    cannot_be_renamed,
    holds,
    is_vacant,
    sync,
    sync_tree,
)
from graphs.manifest import (
    FORMAT,
    MANIFEST_FILE,
    MAX_MANIFEST_BYTES,
    ManifestError,
    read_manifest,
)
from graphs.plain_files import read_plain
from graphs.shown import listed
from runtime.packs.pack_folder import LOCK_FILE, is_pack_name
from runtime.system.file_lock import NO_LOCKS, LockHeldError, passing_lock
from runtime.system.interrupts import committing, undone_when_ended

FULL = (errno.ENOSPC, errno.EDQUOT)
NO_WRITING = (errno.EACCES, errno.EPERM, errno.EROFS)
PACKED = "packed"  # beside the files of a bundle: weights as a CPU wants them
MORE_ROOM = "free some room or choose an --output on another disk"


def check_target(target: Path, *, force: bool, source: Path | None = None) -> None:
    """Refuses a target that exists, unless it is a bundle (or empty) and `force` is given.

    Args:
        target: the folder, or a link to it, which is followed.
        force: whether a bundle may be replaced.
        source: the folder that is read from, which must not be replaced.

    Raises:
        ExportError: saying why and what to do.
    """
    if target.is_symlink() and not target.exists():
        raise ExportError(f"{target} is a link to nothing; choose another --output")
    if not target.exists():
        return
    if not target.is_dir():
        raise ExportError(f"{target} exists and is not a folder; choose another --output")
    if is_vacant(target):
        return
    if not _is_bundle(target):
        raise ExportError(f"{target} exists and is not a bundle; choose another --output")
    if holds(target, source):
        raise ExportError(
            f"{target} holds the preset {source}, which would be replaced too; choose another --output"
        )
    if not force:
        raise ExportError(f"{target} exists; replace it with --force or choose another --output")
    if not cannot_be_renamed(target) and (others := _other_files(target)):
        raise ExportError(
            f"{target} holds {listed(others)}, which no export wrote and --force would delete; move "
            "that elsewhere or choose another --output"
        )


def _is_bundle(folder: Path) -> bool:
    """Whether an export has made a folder; other programs have files called manifest.json too."""
    if (folder / WHOLE).exists():  # an export was killed while it put the files in their places
        return True
    try:
        return FORMAT.encode() in read_plain(folder / MANIFEST_FILE, MAX_MANIFEST_BYTES)
    except OSError:
        return False


def _other_files(bundle: Path) -> list[str]:
    """What lies in a bundle and is no part of it; nothing where its manifest does not tell."""
    try:
        entries = read_manifest(bundle).files
    except ManifestError:  # of another version, or damaged
        return []
    known = {MANIFEST_FILE, PACKED, *(entry.name for entry in entries), *WITHIN_NAMES, *DISKS_OWN}
    found = [path.name for path in bundle.iterdir() if path.name not in known]
    packs = bundle / PACKED
    if packs.is_dir() and not packs.is_symlink():
        found += [f"{PACKED}/{path.name}" for path in packs.iterdir() if not _is_of_packs(path)]
    return sorted(found)


def _is_of_packs(path: Path) -> bool:
    return path.name == LOCK_FILE or is_pack_name(path.name)


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
    """A temporary folder, put in the target's place when the block ends without an error.

    What stands at the target serves until then and is replaced as a whole. After an error or Ctrl-C
    nothing is left behind, not even folders above the target that were made for it; what a kill leaves,
    the next call with that target removes.

    A target that is a mount point, the working folder or above it, or whose parent may not be written
    to stays the folder that it is, and its files are replaced one by one. A kill in the midst of that
    leaves what nothing takes for a bundle; the next call ends the replacement.

    Raises:
        ExportError: at once, if another process writes to the target, or this one may not; or if the
            disk is full.
    """
    real = Path(os.path.realpath(target))
    beside, within = Beside(real), Within(real)
    place: Place = within if cannot_be_renamed(real) else beside
    with contextlib.ExitStack() as stack:
        stack.enter_context(_told_if_full(place))
        stack.enter_context(_parents(real.parent))
        if place is beside or os.access(real.parent, os.W_OK | os.X_OK):
            stack.enter_context(_owned(beside, target))
        if owns_within := place is within or within.has_leftovers():
            stack.enter_context(_owned(within, target))
        with _told_if_full(place):  # here too: while there is what has been written
            place.partial.mkdir()
            yield place.partial
            sync_tree(place.partial)
            try:
                with committing():
                    place.install()
            except OSError as error:
                if place is within or error.errno not in NO_RENAME or beside.replaced.exists():
                    raise
                stack.enter_context(_parents(real))
                if not owns_within:
                    stack.enter_context(_owned(within, target))
                within.take(place.partial)
                with committing():
                    within.install()
        sync(real.parent)


@contextlib.contextmanager
def _owned(place: Place, target: Path) -> Iterator[None]:
    """Nobody else writes there meanwhile, and nothing unfinished is there before and after."""
    with _locked(place, target), undone_when_ended(place.clear):
        place.clear()
        try:
            yield
        finally:
            place.clear()


@contextlib.contextmanager
def _locked(place: Place, target: Path) -> Iterator[None]:
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
            raise _told_if_forbidden(error, place.lock.parent) from error
        with lock:
            yield


def _told_if_forbidden(error: OSError, folder: Path) -> OSError | ExportError:
    if error.errno not in NO_WRITING:
        return error
    return ExportError(f"cannot write to {folder} ({error.strerror}); choose another --output")


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
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise _told_if_forbidden(error, folder) from error
            for path in missing:
                sync(path.parent)
            yield
        except BaseException:
            remove()
            raise


@contextlib.contextmanager
def _told_if_full(place: Place) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        parent = place.partial.parent
        written = sum(p.stat().st_size for p in place.partial.rglob("*") if p.is_file())
        free = shutil.disk_usage(next(p for p in (parent, *parent.parents) if p.exists())).free
        raise ExportError(
            f"the disk of {parent} is full ({error.strerror}): {_size(written)} of the bundle were "
            f"written and {_size(free)} are free; {MORE_ROOM}"
        ) from error


def _size(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"
