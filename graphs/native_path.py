"""Paths for libraries that take text only, where the names of files need not be text."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def native_path(path: Path) -> Iterator[str]:
    """A path as text in UTF-8 that leads to the same place while the block runs.

    On Linux a name is any bytes; of a folder whose name is no text, its number among the open files of
    the process takes the place.

    Raises:
        OSError: if the system has no such way.
    """
    if os.name == "nt":
        yield os.fspath(path)
        return
    raw = os.fsencode(path)
    if (text := _text(raw)) is not None:
        # In an ASCII locale, Python holds other characters of a path as bytes that it could not read.
        yield text
        return
    above, name = os.path.split(raw)
    folder = os.open(above or b".", os.O_RDONLY)
    try:
        stand_in = f"/proc/self/fd/{folder}"
        if (text := _text(name)) is None or not os.path.isdir(stand_in):
            raise OSError(f"{path} is no name in UTF-8, which ONNX's libraries need; rename it")
        yield f"{stand_in}/{text}"
    finally:
        os.close(folder)


def path_text(path: str | os.PathLike[str]) -> str:
    """A path as text to keep, `\\xe9` for a byte that is none: for people, or to compare with."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _text(raw: bytes) -> str | None:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return None
