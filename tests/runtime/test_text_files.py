"""Text and JSON of strangers: sizes and kinds of files, and JSON that has one meaning."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from graphs.strict_json import parse_json
from runtime.text_files import read_text


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
        ("[" + "1" * 5000 + "]", "Exceeds the limit"),
        ("", "Expecting value"),
        ("{} {}", "Extra data"),
    ],
)
def test_json_that_is_refused(text: str, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        parse_json(text)
