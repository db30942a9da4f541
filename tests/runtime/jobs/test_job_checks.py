"""Jobs of `opt-generate`: what is checked before any text is written."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from runtime import cli
from tests.runtime.jobs.test_job_command import lines
from tests.runtime.test_cli import Run, assert_error, run  # noqa: F401


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-length", "65"], "max_length is 65, more than the model's 64 positions"),
        (["--k", "301"], "k=301 is larger than the vocabulary of 300 tokens"),
        (["--timeout", "-1"], "timeout must be a number of seconds above 0"),
        (["--batch-size", "0"], "--batch-size must be from 1 to 65536, got 0"),
        (["--sampler", "beam", "--seed", "1"], "the sampler beam does not take --seed"),
        (["--max-cache-bytes", "x"], "a size is a number and a unit"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_are_no_fault_of_the_lines(
    run: Run,  # noqa: F811
    tmp_path: Path,
    options: list[str],
    message: str,
) -> None:
    target = tmp_path / "out.jsonl"
    target.write_text("old", "utf-8")
    arguments = ("--input", "-", "--output", str(target), *options)
    assert_error(run(*arguments, stdin=lines({"prompt": "a"})), message)
    assert target.read_text("utf-8") == "old"


def test_the_output_is_checked_before_the_bundle(
    run: Run,  # noqa: F811
    tmp_path: Path,
) -> None:
    def result(output: str, bundle: Path = tmp_path) -> tuple[int, str, str]:
        return run("--input", "-", "--output", output, stdin=lines({"prompt": "a"}), bundle=bundle)

    assert_error(result(str(tmp_path)), f"--output: {tmp_path} is a folder; name a file in it")
    missing = tmp_path / "missing" / "out.jsonl"
    assert_error(result(str(missing)), f"--output: there is no folder {missing.parent} to write")
    assert_error(result(str(tmp_path / "out.jsonl")), "is no bundle: it has no manifest.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("link", ["itself", "hard", "soft"])
def test_the_input_is_never_the_output(run: Run, tmp_path: Path, link: str) -> None:  # noqa: F811
    source = target = tmp_path / "in.jsonl"
    source.write_text(lines({"prompt": "a"}))
    if link != "itself":
        target = tmp_path / "link"
        (os.link if link == "hard" else os.symlink)(source, target)
    message = f"{source} is the input and the output too; name another --output"
    assert_error(run("--input", str(source), "--output", str(target)), message)
    assert source.read_text() == lines({"prompt": "a"})


def test_an_input_that_is_a_folder(run: Run, tmp_path: Path) -> None:  # noqa: F811
    assert_error(run("--input", str(tmp_path)), "Is a directory")


def test_no_standard_input_for_a_job(
    run: Run,  # noqa: F811
    toy_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert cli.main([str(toy_bundle), "--input", "-"]) == 2
    assert "standard input is closed" in capsys.readouterr().err
