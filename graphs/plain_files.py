"""Files of a folder that a stranger may have made: regular ones only, no links, nothing that blocks."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

_HASH_BLOCK = 1024 * 1024
# Without these flags, opening follows a link to any file, and waits for the other end of a pipe.
_FLAGS = os.O_RDONLY | sum(getattr(os, flag, 0) for flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))


def is_plain(path: Path) -> bool:
    """Whether a path is a regular file itself, and no link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (OSError, ValueError):
        return False


def open_plain(path: Path) -> BinaryIO:
    """Opens a regular file for reading.

    Raises:
        OSError: if it is not there, or is a link, a folder, a pipe or a device.
    """
    if not is_plain(path):  # systems without the flags rely on this
        raise OSError(f"{path} is missing or no regular file")
    file = os.fdopen(os.open(path, _FLAGS), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(f"{path} is no regular file")
    return file


def read_plain(path: Path, most: int) -> bytes:
    """The content of a regular file.

    Args:
        path: the file.
        most: bytes that it may have.

    Raises:
        OSError: if it cannot be opened, see `open_plain`, or is larger.
    """
    with open_plain(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(f"{path} is larger than {most} bytes")
    return data


def hash_file(path: Path, advance: Callable[[int], None] = lambda size: None) -> str:
    """SHA-256 of a regular file in hexadecimal.

    Args:
        path: the file.
        advance: told of every block's bytes once they are read.

    Raises:
        OSError: if it cannot be opened, see `open_plain`.
    """
    digest = hashlib.sha256()
    with open_plain(path) as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
            advance(len(block))
    return digest.hexdigest()
