"""Text and JSON of strangers: sizes and kinds of files, and JSON that has one meaning."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from graphs.strict_json import parse_json
from runtime.text_files import decode_text, read_text


def test_text_is_read_up_to_its_limit(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("é" * 5, encoding="utf-8")
    assert read_text(tmp_path / "a", 10) == "ééééé"
    with pytest.raises(ValueError, match="a has 10 bytes, and such a file may have 9; fetch"):
        read_text(tmp_path / "a", 9)


def test_what_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="a is not UTF-8 text"):
        read_text(tmp_path / "a", 10)
    with pytest.raises(ValueError, match="is not a regular file; put a plain file in its place"):
        read_text(tmp_path, 10)
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "nothing", 10)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it would never return
    with pytest.raises(ValueError, match="pipe is not a regular file"):
        read_text(tmp_path / "pipe", 10)


@pytest.mark.parametrize("data", ["Zoë\n😀", "", "a", "\0\0", "a\0bc"])
def test_text_of_a_person_is_utf_8_with_a_mark_or_without(data: str) -> None:
    assert decode_text(data.encode(), "notes") == data
    assert decode_text(data.encode("utf-8-sig"), "notes") == data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("Zoë".encode("utf-16"), "notes is UTF-16, as .*convert it: iconv -f UTF-16 -t UTF-8"),
        ("Zo".encode("utf-16-le"), "notes is UTF-16LE, as .*convert it: iconv -f UTF-16LE -t UTF-8"),
        ("Zo".encode("utf-16-be"), "notes is UTF-16BE"),
        ("Zoë".encode("utf-32"), "notes is UTF-32, as"),
        ("Zo".encode("utf-32-le"), "notes is UTF-32LE"),
        ("Zo".encode("utf-32-be"), "notes is UTF-32BE"),
        (
            b"a\nZo\xeb!",
            "notes is not UTF-8: byte 3 of line 2 is 0xeb; it may be Windows-1252 or Latin-1",
        ),
        (b"\x8fa\x81", "notes is not UTF-8: byte 1 of line 1 is 0x8f; save it as UTF-8"),
        ("é".encode()[:1], "byte 1 of line 1 is 0xc3"),
    ],
)
def test_other_encodings_are_named(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_text(data, "notes")


def test_json_as_it_should_be() -> None:
    text = '{"a": [1, 2.5, true, null, "\\u00e9\\ud83d\\ude00"], "b": {"a": -1e3}}'
    assert parse_json(text) == {"a": [1, 2.5, True, None, "é😀"], "b": {"a": -1000.0}}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('{"a": 1, "b": 2, "a": 3}', "it gives the name 'a' twice"),
        ('[{"a": 1, "a": 1}]', "it gives the name 'a' twice"),
        ("[NaN]", "it holds the number NaN, which is not finite"),
        ("[-Infinity]", "it holds the number -Infinity, which is not finite"),
        ("[1e999]", "it holds the number 1e999, which is not finite"),
        ("[" * 100_000, "it nests too deeply"),
        ('{"a":' * 100_000, "it nests too deeply"),
        (r'{"a": "\ud800"}', "it holds half a character"),
        (r'{"\uDFFF": 1}', "it holds half a character"),
        ("[" + "1" * 5000 + "]", "it holds a whole number of thousands of digits"),
        ("", "Expecting value"),
        ("{} {}", "Extra data"),
    ],
)
def test_json_that_is_refused(text: str, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        parse_json(text)
