"""Prompts from JSON Lines, read as they are needed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from graphs.strict_json import parse_json
from runtime.system.standard_streams import input_bytes
from runtime.text_files import check_width, decode_text

PROMPT, OPTIONS = "prompt", "options"
MAX_LINE_BYTES = 16 * 1024**2  # a line is in memory as a whole, parsed JSON takes many times as much
_MOST_REPEATED = 200  # characters of a line, in a message
_BLOCK = 1024**2
_ENDINGS = b" \t\r\n\v\f"


@dataclass(frozen=True)
class Request:
    """A line of the input that is not blank.

    Attributes:
        line: its number, from 1.
        fields: all that it holds; nothing where it is no object of JSON.
        problem: what is wrong with it, after its number: "is not JSON: ..."; `None` if nothing is.
    """

    line: int
    fields: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None

    @property
    def prompt(self) -> str:
        """The text to continue; only where there is no problem."""
        prompt = self.fields[PROMPT]
        assert isinstance(prompt, str)
        return prompt


@contextlib.contextmanager
def open_input(path: str) -> Iterator[tuple[BinaryIO, str]]:
    """A file for reading and its name for messages; standard input for `-`.

    Raises:
        OSError: if it cannot be opened.
        ValueError: if standard input is closed.
    """
    if path != "-":
        with open(path, "rb") as file:
            yield file, path
        return
    piped = input_bytes()
    if piped is None:
        raise ValueError("standard input is closed; give --input a file, or pipe one in")
    yield piped, "standard input"


def read_requests(file: BinaryIO, name: str) -> Iterator[Request]:
    """The lines of a file, one after another; blank ones are left out.

    Args:
        file: UTF-8, with or without a byte order mark, lines ended by `\\n` or `\\r\\n`.
        name: of the file, for messages.

    Raises:
        ValueError: at once, if the file is UTF-16 or UTF-32, of which no line could be read.
        OSError: if it cannot be read.
    """
    for number, data in _lines(file):
        if number == 1:
            check_width(data, name)
        if data.removeprefix(b"\xef\xbb\xbf").strip(_ENDINGS):
            yield _request(number, data, name)


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Lines and their numbers; of one that is too long, the first byte too many shows it."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        yield number, line
        if len(line) > MAX_LINE_BYTES:
            while not line.endswith(b"\n") and (line := file.readline(_BLOCK)):
                pass


def _request(line: int, data: bytes, name: str) -> Request:
    if len(data) > MAX_LINE_BYTES:
        return Request(
            line, problem=f"has more than {MAX_LINE_BYTES // 1024**2} MiB, the most of a line"
        )
    try:
        text = decode_text(data, name, line).strip()
    except ValueError as error:
        return Request(line, problem=f"cannot be read: {error}")
    try:
        value = parse_json(text)
    except json.JSONDecodeError as error:
        return Request(line, problem=f"is not JSON: {error.msg} at character {error.colno}")
    except ValueError as error:
        return Request(line, problem=f"is not JSON: {error}")
    if not isinstance(value, dict):
        return Request(line, problem=_wanted(value))
    problem = None if isinstance(value.get(PROMPT), str) else _wanted(value)
    return Request(line, value, problem)


def _wanted(value: Any) -> str:
    told = json.dumps(value, ensure_ascii=False)
    if len(told) > _MOST_REPEATED:
        told = f"{told[:_MOST_REPEATED]} …"
    return f'must be {{"{PROMPT}": "..."}}, got {told}'
