"""Reads an HDF5 file for a trial in a process of its own.

The HDF5 library is written in C and trusts what it reads: a few changed bits of a file can make it
read beyond its memory, or go round in a circle. So all that it will be asked for is first asked in a
child process, which may die of it.

    python -m exporter.checkpoints.h5_check FILE
"""

from __future__ import annotations

import contextlib
import functools
import subprocess
import sys
from pathlib import Path

from exporter.errors import CheckpointError
from runtime.system.child_process import python_command, python_environment

SECONDS = 60  # for the names and sizes; they take a tenth of one
BYTES_PER_SECOND = 20 * 1024**2  # of what the library has to put together from pieces
MEMORY = 8 * 1024**3
REFUSED = 3  # exit code: the error is on standard output


def check_in_child(path: Path) -> None:
    """Raises `CheckpointError` if the file cannot be read, or the library does not survive it."""
    try:
        status = path.stat()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    _check(path.absolute(), status.st_ino, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _check(path: Path, inode: int, size: int, changed: int) -> None:
    """Once for a file that stays as it is."""
    try:
        done = subprocess.run(
            python_command("-m", __name__, str(path), untrusted=[path.parent]),
            env=python_environment(untrusted=[path.parent]),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=SECONDS + size / BYTES_PER_SECOND,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CheckpointError(
            f"{path} is damaged: the HDF5 library does not come to an end with it; fetch it again"
        ) from None
    if done.returncode == REFUSED:
        raise CheckpointError(done.stdout)
    if done.returncode:
        raise CheckpointError(
            f"{path} is damaged: the HDF5 library crashed on it (exit code {done.returncode}); fetch "
            f"it again. {done.stderr[-500:]}"
        )


def read_for_trial(path: Path) -> None:
    """Reads what the library reads of a file: its names and sizes, and values that lie in pieces.

    Raises:
        CheckpointError: if the file cannot be read.
    """
    from exporter.checkpoints.h5_file import H5Reader

    with contextlib.closing(H5Reader(path, check=lambda path: None)) as reader:
        reader.read_pieces()
        with contextlib.suppress(CheckpointError):  # whoever asks for them is told
            _ = reader.attributes


def main() -> int:
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on every system
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    try:
        read_for_trial(Path(sys.argv[1]))
    except CheckpointError as error:
        print(error, end="")
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
