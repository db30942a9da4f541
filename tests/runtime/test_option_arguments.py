"""`GenerationOptions` on the command line of `opt-generate`."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime import Generator
from tests.runtime.test_cli import Run, assert_error, greedy_text, run  # noqa: F401


def test_a_temperature_of_0_is_the_options(run: Run, generator: Generator) -> None:  # noqa: F811
    found = run("the king", "--temperature", "0", "--max-length", "20")
    assert found == (0, greedy_text(generator, "the king", max_length=20) + "\n", "")


def test_a_seed_of_the_command_line_goes_before_one_of_a_file(run: Run, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "options.json").write_text('{"seed": 1, "max_new_tokens": 9}')
    found = [
        run("t", "--sampler", "random", "--options", str(tmp_path / "options.json"), *seed)
        for seed in ([], ["--seed", "1"], ["--seed", "5"])
    ]
    alone = run("t", "--sampler", "random", "--seed", "5", "--max-new-tokens", "9")
    assert found[0] == found[1] != found[2] == alone


def test_two_dashes_as_an_options_value(run: Run, generator: Generator) -> None:  # noqa: F811
    wanted = greedy_text(generator, "the king", max_length=9) + "\n"
    found = run("the king", "--temperature", "0", "--stop=--", "--max-length", "9")
    assert found == (0, wanted, "")
    pytest.importorskip("llguidance")
    assert run("t", "--choice=--", "--strip-prompt") == (0, "--\n", "")


def test_beams_that_the_options_do_not_allow_are_not_printed(run: Run) -> None:  # noqa: F811
    status, out, _ = run("t", "--sampler", "beam", "--all-beams", "--allowed-token-ids", "40,41")
    assert (status, "inf" in out) == (0, False)
    options = ["--sampler", "beam", "--all-beams", "--allowed-token-ids", "40"]
    status, out, _ = run("t", *options, "--max-new-tokens", "3")
    assert (status, out.count("\n")) == (0, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--top-k", "5", "--sampler", "greedy"], "--top-k draws tokens in place of a sampler"),
        (["--min-p", "0.1", "--k", "3", "--p", "1"], "leave it out, or --k, --p"),
        (["--n", "2", "--sampler", "beam"], "n=2 is for samplers that draw"),
        (["--best-of", "3", "--sampler", "beam"], "best_of=3 is for samplers that draw"),
        (["--temperature", "0", "--sampler", "beam"], "tokens are drawn by temperature, and BeamS"),
        (["--options", "none"], "--options takes FILE: 'none' cannot be read: No such file or"),
        (["--grammar", 'start: "a"'], "'start: \"a\"' cannot be read: No such file or directory"),
        (["--json-schema", "none"], "--json-schema takes FILE|JSON, got 'none': 'none' cannot be read"),
    ],
)
def test_what_does_not_fit_is_told_by_its_name(
    run: Run,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_error(run("the king", *options), message)
