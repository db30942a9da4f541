"""Text from files that a stranger may have written."""

from __future__ import annotations

import stat
from pathlib import Path

MEGABYTE = 1024**2
MAX_TOKENIZER_BYTES = 64 * MEGABYTE  # of one file; OPT's own vocabulary takes less than one


def read_text(path: Path, most: int) -> str:
    """The text of a file, looked at before it is read: a pipe would block, a giant fill memory.

    Args:
        path: the file.
        most: bytes it may have.

    Raises:
        FileNotFoundError: if there is nothing.
        ValueError: if it is no regular file, is larger, or is not UTF-8.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path} is not a regular file; put a plain file in its place")
    if status.st_size > most:
        raise ValueError(
            f"{path} has {status.st_size} bytes, and such a file may have {most}; fetch the file again"
        )
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from None
