"""Lines of JSON, read as they are needed."""

from __future__ import annotations

import io
import json
import tracemalloc
from collections.abc import Iterator

import pytest

from runtime.jobs import requests
from runtime.jobs.requests import read_requests


class Endless(io.RawIOBase):
    """Gives the same lines for ever; counts what was read."""

    def __init__(self, line: bytes) -> None:
        self._line, self.given = line, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        data = (self._line * (len(buffer) // len(self._line) + 1))[: len(self._line)]
        buffer[: len(data)] = data
        self.given += len(data)
        return len(data)


def read(data: bytes) -> Iterator[tuple[int, object]]:
    for request in read_requests(io.BytesIO(data), "in.jsonl"):
        yield request.line, request.problem or request.prompt


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"\n\n", []),
        (b"\xef\xbb\xbf", []),
        (b"\xef\xbb\xbf\n\xef\xbb\xbf\r\n \t\n", []),
        (b'{"prompt": "a"}', [(1, "a")]),
        (b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n{"prompt": "b"}\r\n', [(1, "a"), (3, "b")]),
        (b'{"prompt": "a"}\n\xef\xbb\xbf{"prompt": "b"}', [(1, "a"), (2, "b")]),  # joined files
        (b' {"prompt": "\xf0\x9f\x98\x80"} ', [(1, "😀")]),
        (b'{"prompt": "\\ud83d\\ude00\\u0000"}', [(1, "😀\0")]),
    ],
)
def test_lines(data: bytes, expected: list[tuple[int, str]]) -> None:
    assert list(read(data)) == expected


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_wide_encodings_end_the_reading(encoding: str) -> None:
    name = encoding.upper().replace("-LE", "LE").replace("-BE", "BE")
    with pytest.raises(ValueError, match=rf"in.jsonl is {name}, as .* convert it: iconv -f {name} -t"):
        next(read('{"prompt": "a"}\n'.encode(encoding)))


def test_a_line_that_is_too_long_is_left_out_and_the_next_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "MAX_LINE_BYTES", 2**20)
    longest = json.dumps({"prompt": "a" * (2**20 - 15)}).encode() + b"\n"
    assert len(longest) == 2**20
    expected = [(1, "a" * (2**20 - 15)), (2, "has more than 1 MiB, the most of a line"), (3, "b")]
    data = longest + longest.replace(b"a", b"aa", 1) + b'{"prompt": "b"}'
    assert list(read(data)) == expected
    assert next(read(b"x" * 5 * 2**20))[1] == "has more than 1 MiB, the most of a line"


def test_memory_does_not_grow_with_the_input() -> None:
    """Lines are read as they are asked for, and none of them is kept."""
    line = json.dumps({"prompt": "the king", "x": "x" * 100}).encode() + b"\n"
    tracemalloc.start()
    try:
        count = 0
        source = Endless(line)
        for request in read_requests(io.BufferedReader(source), "in.jsonl"):
            count += request.prompt == "the king"
            if count == 20_000:
                break
        many = tracemalloc.get_traced_memory()[1]
        assert source.given < len(line) * count + 2 * io.DEFAULT_BUFFER_SIZE  # as it goes
    finally:
        tracemalloc.stop()
    assert many < 2**20
