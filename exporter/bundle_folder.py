"""Writing a folder so that it is either whole or not there."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from exporter.errors import ExportError
from graphs.manifest import MANIFEST_FILE


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
            f"the disk of {parent} has {free / 1e9:.2f} GB free and the bundle takes "
            f"{needed / 1e9:.2f} GB; free some room or choose an --output on another disk"
        )


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside the target, renamed to it when the block ends without an error.

    What stood at the target is replaced as a whole; after an error or Ctrl-C nothing is left behind.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.partial-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for path in temporary.iterdir():
            _sync(path)
        _sync(temporary)
        _replace(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync(target.parent)


def _replace(temporary: Path, target: Path) -> None:
    old = target.parent / f".{target.name}.replaced-{os.getpid()}"
    if target.exists():
        target.rename(old)
    try:
        temporary.rename(target)
    except BaseException:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
