"""Standard input, output and error as commands need them, however they were started.

A process may be started without one of them (`>&-`): the next file that it opens would then get its
number, and whatever prints would write into that file. A terminal may know fewer characters than a
text has. And what is printed may have no place to go, on a full disk or a pipe whose reader has left.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import BinaryIO, TextIO


def prepare_streams() -> None:
    """Makes printing safe: for a command to call before it opens any file.

    Missing streams lead to the null device, but `sys.stdin` stays `None` where there is no input.
    Characters that standard output or error cannot show are printed as `\\xe9` or `\\U0001f600`.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
            if null == number:
                os.set_inheritable(null, True)
            else:
                os.dup2(null, number)
                os.close(null)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (as long as the process)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def input_bytes() -> BinaryIO | None:
    """Standard input as bytes, for text in UTF-8 whatever the locale; `None` where it is closed."""
    if sys.stdin is None:
        return None
    buffer: BinaryIO | None = getattr(sys.stdin, "buffer", None)
    # An application may have put a stream of text there.
    return io.BytesIO(sys.stdin.read().encode()) if buffer is None else buffer


def print_out(text: str, end: str = "\n") -> None:
    """Prints on standard output, at once.

    Raises:
        OSError: if it cannot be written, naming standard output; `BrokenPipeError` if nobody reads it.
    """
    with _named_output():
        print(text, end=end, flush=True)


def flush_out() -> None:
    """Writes what is still in the buffer of standard output; see `print_out`."""
    with _named_output():
        sys.stdout.flush()


def is_unicode(stream: TextIO) -> bool:
    """Whether a stream writes UTF-8, and so every character."""
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "") == "utf8"


def print_error(text: str) -> None:
    """Prints on standard error, where that is possible: there is nobody else to tell."""
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        silence(sys.stderr)


def silence(stream: TextIO) -> None:
    """Lets a stream write to nowhere: what is in its buffer would fail again when Python ends."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


@contextlib.contextmanager
def _named_output() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from None
