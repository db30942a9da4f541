"""What commands share: options in any order, errors as one sentence."""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.command import CommandParser, run_command
from runtime.sentences import MOST_CHARACTERS, legible


@pytest.fixture
def parser() -> CommandParser:
    parser = CommandParser(prog="test")
    parser.add_argument("bundle")
    parser.add_argument("prompts", nargs="*")
    parser.add_argument("--count", type=int)
    parser.add_argument("--name")
    return parser


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["b"], ("b", [], None, None)),
        (["b", "--count", "1", "p"], ("b", ["p"], 1, None)),
        (["b", "p", "--count=1", "q", "--name", "n", "r"], ("b", ["p", "q", "r"], 1, "n")),
        (["--count", "1", "b", "p"], ("b", ["p"], 1, None)),
        (["--name", "n", "--", "b", "-p"], ("b", ["-p"], None, "n")),
        (["b", "p", "--", "--count", "--", "--"], ("b", ["p", "--count", "--", "--"], None, None)),
        (["b", "--name", "n", "--", "--name"], ("b", ["--name"], None, "n")),
        (["b", "-1", "-2 x", "-", ""], ("b", ["-1", "-2 x", "-", ""], None, None)),
    ],
)
def test_options_and_arguments_in_any_order(
    parser: CommandParser, line: list[str], expected: tuple[Any, ...]
) -> None:
    found = parser.parse_args(line)
    assert (found.bundle, found.prompts, found.count, found.name) == expected


@pytest.mark.parametrize("line", [[], ["b", "--nope"], ["b", "--count", "x"], ["b", "-p"], ["--"]])
def test_wrong_lines(
    parser: CommandParser, capsys: pytest.CaptureFixture[str], line: list[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(line)
    assert stopped.value.code == 2
    assert "test: error: " in capsys.readouterr().err


def test_an_error_in_options_repeats_only_so_much(
    parser: CommandParser, capsys: pytest.CaptureFixture[str]
) -> None:
    for line in (["b", "--count", "x" * 10**5], ["b", "--" + "x" * 10**5]):
        with pytest.raises(SystemExit):
            parser.parse_args(line)
        assert len(capsys.readouterr().err) < MOST_CHARACTERS + 500


def fail(error: BaseException) -> Any:
    def run(_: object) -> None:
        raise error

    return run


class Native(Exception):  # noqa: N818
    """As ONNX Runtime's, which have no base of their own."""


Native.__module__ = "onnxruntime.capi.onnxruntime_pybind11_state"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("no"), "no"),
        (ValueError(), "ValueError"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"), "'utf-8' codec can't decode byte 0xff in "),
        (RecursionError("maximum recursion depth exceeded"), "maximum recursion depth exceeded"),
        (OverflowError("too large"), "too large"),
        (MemoryError(), "memory ran out: give the process more (ulimit -v, the container's limit), or"),
        (MemoryError("Unable to allocate 2 GiB"), "memory ran out (Unable to allocate 2 GiB): give"),
        (RuntimeError("can't start new thread"), "memory ran out (can't start new thread): give"),
        (Native("Failed\n  to run"), "Failed to run"),
        (Native("Status: std::bad_alloc"), "memory ran out (Status: std::bad_alloc): give"),
        (ValueError("a\x1b[31m\x07b\udce9"), "a\\x1b[31m\\x07b\\udce9"),
        (ValueError("a\x9b31m\x85\x7f\xa0é"), "a\\x9b31m\\x85\\x7f\xa0é"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_errors_are_one_sentence(
    capsys: pytest.CaptureFixture[str], error: Exception, told: str
) -> None:
    assert run_command("test", fail(error), SimpleNamespace()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"test: {told}")
    assert err.count("\n") == 1


def test_the_exit_code_of_a_command() -> None:
    assert run_command("test", lambda _: None, SimpleNamespace()) == 0
    assert run_command("test", lambda _: 1, SimpleNamespace()) == 1


@pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="counts files as POSIX tells them")
def test_a_command_leaves_no_file_open_on_whatever_thread_it_ran() -> None:
    def run() -> None:
        assert run_command("test", lambda _: None, SimpleNamespace()) == 0

    before = len(os.listdir("/dev/fd"))
    for _ in range(3):
        run()
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert len(os.listdir("/dev/fd")) == before


def test_no_memory_for_the_thread_that_watches(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    assert run_command("test", lambda _: None, SimpleNamespace()) == 2
    assert capsys.readouterr().err.startswith("test: memory ran out (can't start new thread)")


def test_a_long_text_keeps_its_beginning_and_its_end() -> None:
    assert legible("short") == "short"
    text = legible("begin" + "x" * 10**6 + "end")
    assert text.startswith("beginx")
    assert text.endswith("xend")
    assert len(text) == MOST_CHARACTERS + 3
