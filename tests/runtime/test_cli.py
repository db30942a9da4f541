"""`opt-generate`, in this process and as a command."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime import Generator, cli
from runtime.samplers import TopKSampler
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
    "arguments", [[], ["b", "--sampler", "best"], ["b", "--k", "x"], ["b", "--nope"]]
)
def test_a_wrong_command_line(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert "usage: opt-generate" in capsys.readouterr().err


# === JSON Lines ===

PROMPTS = ["the", "", "a quick", "Zoë 😀", "in the inn"]


def lines(*values: Any) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def test_json_lines_in_and_out(run: Run, generator: Generator, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    requests = [{"id": i, "prompt": prompt} for i, prompt in enumerate(PROMPTS)]
    source.write_text(lines(*requests[:2]) + "\n  \n" + lines(*requests[2:]), "utf-8")
    options = ["--input", str(source), "--output", str(target), "--sampler", "greedy"]
    assert run(*options, "--batch-size", "2") == (0, "", "")
    found = [json.loads(line) for line in target.read_text("utf-8").splitlines()]
    assert [(line["id"], line["prompt"]) for line in found] == list(enumerate(PROMPTS))
    generator.compile("greedy")
    for line, result in zip(found, generator.generate_results(PROMPTS), strict=True):
        assert line["text"] == result.text
        assert line["token_ids"] == list(result.token_ids)
        assert line["prompt_token_ids"] == list(result.prompt_token_ids)
        assert line["finish_reason"] == result.finish_reason
        assert line["prompt_tokens"] == result.prompt_tokens
        assert line["generated_tokens"] == result.generated_tokens
        assert line["prefill_tokens_per_second"] > 0
        assert line["decode_tokens_per_second"] > 0
    assert "Zoë 😀" in target.read_text("utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_json_lines_through_pipes(run: Run, generator: Generator) -> None:
    status, out, _ = run("--input", "-", "--sampler", "greedy", stdin=lines({"prompt": "the"}))
    assert status == 0
    assert json.loads(out)["text"] == greedy_text(generator, "the")


def test_a_seeded_line_does_not_depend_on_the_batch(run: Run, generator: Generator) -> None:
    generator.compile(TopKSampler(seed=2))
    wanted = [generator.generate(prompt) for prompt in PROMPTS]
    text = lines(*({"prompt": prompt} for prompt in PROMPTS))
    for size in ("1", "2", "8"):
        _, out, _ = run("--input", "-", "--seed", "2", "--batch-size", size, stdin=text)
        assert [json.loads(line)["text"] for line in out.split("\n")[:-1]] == wanted


@pytest.mark.parametrize("character", ["\u2028", "\u0085", "\u2029", "\x7f", "\ufeff"])
def test_a_prompt_may_hold_any_character(run: Run, character: str) -> None:
    """JSON needs no escape for these, and `ensure_ascii=False` writes none."""
    text = json.dumps({"prompt": f"a{character}b"}, ensure_ascii=False) + "\n"
    status, out, error = run("--input", "-", "--max-length", "9", stdin=text)
    assert (status, error) == (0, "")
    assert json.loads(out)["prompt"] == f"a{character}b"


def test_the_output_can_be_the_next_input(run: Run) -> None:
    options = ("--input", "-", "--seed", "1", "--max-length", "40", "--no-stop")
    _, first, _ = run(*options, stdin=lines(*({"prompt": prompt} for prompt in PROMPTS)))
    status, second, error = run(*options, stdin=first)
    assert (status, error) == (0, "")
    timed = {"prefill_seconds", "decode_seconds"}
    timed |= {"prefill_tokens_per_second", "decode_tokens_per_second"}

    def untimed(out: str) -> list[dict[str, Any]]:
        values = [json.loads(line) for line in out.split("\n")[:-1]]
        return [{name: v for name, v in value.items() if name not in timed} for value in values]

    assert untimed(second) == untimed(first)


def test_no_requests(run: Run, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    assert run("--input", "-", "--output", str(target), stdin="\n") == (0, "", "")
    assert target.read_text("utf-8") == ""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "-, line 3 is not JSON: "),
        ("prompt", "-, line 3 is not JSON: "),
        ('"the"', '-, line 3 must be {"prompt": "..."}, got "the"'),
        ("[]", '-, line 3 must be {"prompt": "..."}, got []'),
        ('{"text": "a"}', '-, line 3 must be {"prompt": "..."}, got {"text": "a"}'),
        ('{"prompt": 5}', '-, line 3 must be {"prompt": "..."}, got {"prompt": 5}'),
    ],
)
def test_a_bad_line_is_told_by_number(run: Run, line: str, message: str) -> None:
    text = lines({"prompt": "a"}) + f"\n{line}\n" + lines({"prompt": "b"})
    assert_error(run("--input", "-", stdin=text), message)


def test_half_a_surrogate_pair(run: Run) -> None:
    assert_error(run("--input", "-", stdin='{"prompt": "a\\ud800"}\n'), "prompt")


def test_a_deeply_nested_line(run: Run) -> None:
    assert_error(run("--input", "-", stdin="[" * 100_000), "-, line 1 is not JSON")


# === The output file ===


def test_an_error_on_the_way_leaves_no_output(run: Run, tmp_path: Path) -> None:
    """The second batch has a prompt that is too long."""
    target = tmp_path / "out.jsonl"
    text = lines({"prompt": "a"}, {"prompt": "t" * 60})
    arguments = ("--input", "-", "--output", str(target), "--batch-size", "1")
    assert_error(run(*arguments, stdin=text), "a prompt has 61 tokens with the start token")
    assert list(tmp_path.iterdir()) == []


def test_an_error_on_the_way_leaves_the_old_output(run: Run, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    target.write_text("old", "utf-8")
    assert run("--input", "-", "--output", str(target), stdin=lines({"prompt": "t" * 60}))[0] == 2
    assert target.read_text("utf-8") == "old"
    assert run("--input", "-", "--output", str(target), stdin=lines({"prompt": "t"}))[0] == 0
    assert json.loads(target.read_text("utf-8"))["prompt"] == "t"
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_an_interrupt_leaves_no_output(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        assert len(list(tmp_path.iterdir())) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(Generator, "generate_results", interrupted)
    target = tmp_path / "out.jsonl"
    result = run("--input", "-", "--output", str(target), stdin=lines({"prompt": "a"}))
    assert result == (130, "", "\nopt-generate: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_output_into_a_folder_that_is_not_there(run: Run, tmp_path: Path) -> None:
    target = tmp_path / "missing" / "out.jsonl"
    arguments = ("--input", "-", "--output", str(target))
    assert_error(run(*arguments, stdin=lines({"prompt": "a"})), "No such file or directory")


def test_output_needs_input(run: Run) -> None:
    assert_error(run("the", "--output", "x"), "--output goes with --input; redirect standard output")


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
        (["the", "--temperature", "0"], "temperature must be a number above 0, got 0.0"),
        (["the", "--temperature", "nan"], "temperature must be a number above 0, got nan"),
        (["the", "--seed", "-1"], "seed must be a whole number of at least 0 or None, got -1"),
        (["the", "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--input", "no such file.jsonl"], "No such file or directory: 'no such file.jsonl'"),
        (["a\udcff"], "prompt"),
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
