"""Text from files that a stranger may have written."""

from __future__ import annotations

import codecs
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


def decode_text(data: bytes, name: str, line: int = 1) -> str:
    """What a person wrote: UTF-8, without the byte order mark that some editors put before it.

    Args:
        data: the bytes of the text.
        name: where it is from, for the message.
        line: number of its first line there.

    Raises:
        ValueError: if it is not UTF-8, saying where, what it may be, and how to convert it.
    """
    if line == 1:
        check_width(data, name)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        start = error.start
    line += data.count(b"\n", 0, start)
    column = start - data.rfind(b"\n", 0, start)
    where = f"byte {column} of line {line} is 0x{data[start]:02x}"
    raise ValueError(f"{name} is not UTF-8: {where}; {_guess(data[start : start + 100])}")


def check_width(data: bytes, name: str) -> None:
    """Raises `ValueError` where a text begins as UTF-16 or UTF-32 does."""
    if wide := _wide_encoding(data):
        raise ValueError(
            f"{name} is {wide}, as its first bytes show, and must be UTF-8; convert it: {_iconv(wide)}"
        )


def _wide_encoding(data: bytes) -> str | None:
    """UTF-16 or UTF-32 where a text begins as one of them does: by its mark, or by its zero bytes."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return encoding
    for zeros, encoding in _ZEROS:
        if len(data) >= 4 and tuple(byte == 0 for byte in data[:4]) == zeros:
            return encoding
    return None


_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
# Of the first four bytes, which are zero in text that begins with two ASCII characters.
_ZEROS = (
    ((False, True, False, True), "UTF-16LE"),
    ((True, False, True, False), "UTF-16BE"),
    ((False, True, True, True), "UTF-32LE"),
    ((True, True, True, False), "UTF-32BE"),
)


def _guess(data: bytes) -> str:
    try:
        data.decode("cp1252")
    except UnicodeDecodeError:
        return "save it as UTF-8"
    return f"it may be Windows-1252 or Latin-1; convert it: {_iconv('WINDOWS-1252')}"


def _iconv(encoding: str) -> str:
    return f"iconv -f {encoding} -t UTF-8"
