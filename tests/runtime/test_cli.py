"""`opt-generate`, in this process and as a command."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime import Generator, cli
from runtime.samplers import TopKSampler
from runtime.text_arguments import given_texts
from tests.runtime.toy import edit_manifest

Run = Callable[..., tuple[int, str, str]]


class Terminal(io.StringIO):
    """A standard input that nobody pipes into."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def run(toy_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command on the toy bundle: status, standard output, standard error."""

    def run(
        *arguments: str, stdin: str | None = None, bundle: Path = toy_bundle
    ) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", Terminal() if stdin is None else io.StringIO(stdin))
        status = cli.main([str(bundle), *arguments, "--device", "cpu", "--threads", "1"])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def assert_error(result: tuple[int, str, str], message: str) -> None:
    """One line that says what is wrong, status 2, nothing on standard output."""
    status, out, error = result
    assert status == 2
    assert out == ""
    assert error.startswith("opt-generate: ")
    assert error.count("\n") == 1
    assert message in error


def greedy_text(generator: Generator, prompt: str, **options: Any) -> str:
    generator.compile("greedy")
    return generator.generate(prompt, **options)


# === Prompts ===


def test_a_prompt_is_continued(run: Run, generator: Generator) -> None:
    status, out, error = run("the king", "--sampler", "greedy")
    assert (status, error) == (0, "")
    assert out == greedy_text(generator, "the king") + "\n"


def test_several_prompts(run: Run, generator: Generator) -> None:
    status, out, _ = run("the", "a quick", "--sampler", "greedy", "--max-length", "20")
    texts = [greedy_text(generator, text, max_length=20) for text in ("the", "a quick")]
    assert (status, out) == (0, "".join(f"{text}\n" for text in texts))


def test_standard_input_is_one_prompt(run: Run, generator: Generator) -> None:
    status, out, _ = run("--sampler", "greedy", stdin="the\nking\n")
    assert (status, out) == (0, greedy_text(generator, "the\nking") + "\n")


def test_empty_standard_input_generates_from_the_start_token(run: Run, generator: Generator) -> None:
    status, out, _ = run("--sampler", "greedy", stdin="")
    assert (status, out) == (0, greedy_text(generator, "") + "\n")


@pytest.mark.parametrize(
    ("data", "read"),
    [
        ("Zoë 😀\n".encode(), "Zoë 😀"),
        (b"\xef\xbb\xbfa\r\nb\r\n", "a\nb"),
        (b"a\rb", "a\nb"),
        (b"\xef\xbb\xbf", ""),
    ],
)
def test_standard_input_is_utf_8_whatever_the_locale(
    monkeypatch: pytest.MonkeyPatch, data: bytes, read: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), "ascii"))
    assert given_texts([]) == [read]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            "Zoë".encode("utf-16"),
            "standard input is UTF-16, as its first bytes show, and must be UTF-8",
        ),
        ("Zo".encode("utf-16-be"), "standard input is UTF-16BE, as its first bytes show"),
        (b"a\nZo\xeb", "standard input is not UTF-8: byte 3 of line 2 is 0xeb; it may be Windows-1252"),
        (b"a" * (16 * 2**20 + 1), "standard input, which is one prompt, has more than 16 MiB"),
    ],
    ids=["UTF-16", "UTF-16 without a mark", "Latin-1", "without end"],
)
def test_standard_input_that_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, data: bytes, message: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), "ascii"))
    with pytest.raises(ValueError, match=message):
        given_texts([])


def test_arguments_that_the_locale_could_not_read() -> None:
    """As Python gives the bytes of "Zoë" where the locale is ASCII."""
    assert given_texts(["Zo\udcc3\udcab", "Zoë"]) == ["Zoë", "Zoë"]


def test_prompts_go_before_standard_input(run: Run, generator: Generator) -> None:
    status, out, _ = run("the", "--sampler", "greedy", stdin="other")
    assert (status, out) == (0, greedy_text(generator, "the") + "\n")


def test_no_prompt_at_a_terminal(run: Run) -> None:
    assert_error(run(), "no prompt: give one after BUNDLE, pipe one in, or use --input FILE")


def test_no_standard_input(run: Run, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert cli.main([str(toy_bundle)]) == 2


def test_text_is_printed_as_it_comes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each piece has left the process's own buffer before the next is asked for."""
    written, seen = io.BytesIO(), []

    def stream(self: Generator, prompt: str, **options: Any) -> Iterator[str]:
        for piece in (prompt, " one", " two"):
            yield piece
            seen.append(written.getvalue().decode())

    monkeypatch.setattr(Generator, "stream", stream)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="utf-8", newline=""))
    assert run("the")[0] == 0
    assert seen == ["the", "the one", "the one two"]
    assert written.getvalue() == b"the one two\n"


# === Options ===


def test_options_of_generate(run: Run, generator: Generator) -> None:
    _, out, _ = run("the", "--sampler", "greedy", "--strip-prompt", "--max-length", "30")
    assert out == greedy_text(generator, "the", max_length=30, strip_prompt=True) + "\n"


def test_no_stop(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def stream(self: Generator, prompt: str, **options: Any) -> Iterator[str]:
        seen.append(options)
        return iter([])

    monkeypatch.setattr(Generator, "stream", stream)
    run("the")
    run("the", "--no-stop", "--max-length", "9", "--strip-prompt", "--timeout", "60")
    assert seen == [
        {"max_length": None, "stop_token_ids": "auto", "strip_prompt": False, "timeout": None},
        {"max_length": 9, "stop_token_ids": None, "strip_prompt": True, "timeout": 60.0},
    ]


def test_a_seed_gives_the_same_text(run: Run, generator: Generator) -> None:
    generator.compile(TopKSampler(seed=4))
    wanted = generator.generate("the") + "\n"
    assert run("the", "--seed", "4") == (0, wanted, "")
    assert run("the", "--seed", "4") == (0, wanted, "")
    assert run("the", "--seed", "5")[1] != wanted
    assert run("the")[1] != run("the")[1]


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: opt-generate")
    assert 'opt-generate opt_tiny_en "The import statement" --max-length 60' in out


@pytest.mark.parametrize(
    "order",
    [
        ("BUNDLE", "--max-length", "20", "the", "a"),
        ("--max-length", "20", "BUNDLE", "the", "a"),
        ("BUNDLE", "the", "--max-length=20", "a"),
        ("--max-length", "20", "--", "BUNDLE", "the", "a"),
        ("--max-length", "20", "BUNDLE", "the", "--", "a"),
    ],
)
def test_options_go_anywhere(
    toy_bundle: Path, generator: Generator, capsys: pytest.CaptureFixture[str], order: tuple[str, ...]
) -> None:
    """Also between the bundle and its prompts, which `argparse` refuses by itself."""
    given = [str(toy_bundle) if word == "BUNDLE" else word for word in order]
    assert cli.main(["--sampler", "greedy", "--threads", "1", "--device", "cpu", *given]) == 0
    texts = [greedy_text(generator, text, max_length=20) for text in ("the", "a")]
    assert capsys.readouterr() == ("".join(f"{text}\n" for text in texts), "")


def test_what_follows_two_dashes_is_a_prompt(
    toy_bundle: Path, generator: Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = ["--max-length", "--", "-x"]
    assert cli.main([str(toy_bundle), "--sampler", "greedy", "--threads", "1", "--", *prompts]) == 0
    texts = [greedy_text(generator, prompt) for prompt in prompts]
    assert capsys.readouterr().out == "".join(f"{text}\n" for text in texts)


@pytest.mark.parametrize(
    "arguments", [[], ["b", "--sampler", "best"], ["b", "--k", "x"], ["b", "--nope"]]
)
def test_a_wrong_command_line(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert "usage: opt-generate" in capsys.readouterr().err


# === Errors ===


def test_ctrl_c(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> Iterator[str]:
        yield "the "
        raise KeyboardInterrupt

    monkeypatch.setattr(Generator, "stream", interrupted)
    assert run("the") == (130, "the ", "\nopt-generate: interrupted\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["the", "--max-length", "0"], "max_length must be a whole number of at least 1, got 0"),
        (["the", "--max-length", "65"], "max_length is 65, more than the model's 64 positions"),
        (["t" * 50], "a prompt has 51 tokens with the start token, more than max_length=48"),
        (["the", "--k", "0"], "k must be a whole number of at least 1, got 0"),
        (["the", "--k", "301"], "k=301 is larger than the vocabulary of 300 tokens"),
        (["the", "--temperature", "-1"], "temperature must be a number above 0, got -1.0"),
        (["the", "--temperature", "nan"], "temperature must be a number above 0, got nan"),
        (["the", "--seed", "-1"], "seed must be a whole number of at least 0 or None, got -1"),
        (["the", "--batch-size", "0"], "--batch-size must be from 1 to 65536, got 0"),
        (["--input", "no such file.jsonl"], "No such file or directory: 'no such file.jsonl'"),
        (
            ["the", "--input", "x"],
            "--input gives the prompts: leave out those after BUNDLE",
        ),
        (["the", "--output", "x"], "--output goes with --input; redirect standard output otherwise"),
        (["the", "--resume"], "--resume goes with --input"),
        (["the", "--strict"], "--strict goes with --input"),
        (
            ["a", "b\udce9"],
            "prompt 2 of the command line is not UTF-8: byte 2 of line 1 is 0xe9",
        ),
    ],
    ids=lambda value: None if isinstance(value, list) else value[:20],
)
def test_errors_are_one_sentence(run: Run, arguments: list[str], message: str) -> None:
    status, _, error = run(*arguments)
    assert status == 2
    assert error.startswith("opt-generate: ")
    assert error.count("\n") == 1
    assert message in error


def test_device_and_threads(toy_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([str(toy_bundle), "a", "--device", "tpu"]) == 2
    assert "device must be one of auto, cpu, cuda and cuda:N for GPU" in capsys.readouterr().err
    assert cli.main([str(toy_bundle), "a", "--threads", "0"]) == 2
    assert "threads must be a whole number of at least 1" in capsys.readouterr().err


def test_bad_bundles(run: Run, tmp_path: Path, toy_bundle_copy: Path) -> None:
    assert_error(run("the", bundle=tmp_path), "is no bundle: it has no manifest.json")
    weights = toy_bundle_copy / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    assert run("the", bundle=toy_bundle_copy)[0] == 0
    message = "weights.bin was altered: its SHA-256 is another"
    assert_error(run("the", "--verify", bundle=toy_bundle_copy), message)


def test_a_bundle_with_a_sampler_that_is_wrong(run: Run, toy_bundle_copy: Path) -> None:
    sampler = {"class_name": "TopKSampler", "config": {"beams": 3}}
    edit_manifest(toy_bundle_copy, lambda values: values["generation"].update(sampler=sampler))
    assert_error(run("the", bundle=toy_bundle_copy), "sampler")


# === As a command ===


def command(*arguments: str, repository: Path, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "runtime.cli", *arguments],
        cwd=repository,
        env={**os.environ, "PYTHONUTF8": "1"},
        check=False,
        **options,
    )


def test_the_command(toy_bundle: Path, repository: Path, generator: Generator) -> None:
    result = command(
        str(toy_bundle),
        "--sampler",
        "greedy",
        repository=repository,
        input="Zoë, café: 😀".encode(),
        capture_output=True,
    )
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.decode() == greedy_text(generator, "Zoë, café: 😀") + "\n"


def test_the_command_on_an_error(tmp_path: Path, repository: Path) -> None:
    result = command(str(tmp_path), "the", repository=repository, capture_output=True)
    assert (result.returncode, result.stdout) == (2, b"")
    assert b"is no bundle" in result.stderr
    assert b"Traceback" not in result.stderr


def test_a_broken_pipe_is_no_error(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stream(self: Generator, prompt: str, **options: Any) -> Iterator[str]:
        raise BrokenPipeError
        yield ""

    monkeypatch.setattr(Generator, "stream", stream)
    with (tmp_path / "output").open("w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert run("the") == (0, "", "")
        print("what Python writes when it ends goes nowhere", file=output)
    assert (tmp_path / "output").read_text() == ""


@pytest.mark.skipif(os.name != "posix", reason="pipes close as POSIX has it")
def test_a_reader_that_leaves(toy_bundle: Path, repository: Path) -> None:
    """`opt-generate … | head -c 0` ends quietly."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = command(
            str(toy_bundle), "the", "a", repository=repository, stdout=writer, stderr=subprocess.PIPE
        )
    finally:
        os.close(writer)
    assert (result.returncode, result.stderr) == (0, b"")
