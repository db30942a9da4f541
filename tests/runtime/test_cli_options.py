"""The options of `opt-generate` that become `GenerationOptions`, alone, from a file and in jobs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runtime import GenerationOptions, Generator, cli
from runtime.generation_options import STRUCTURES
from runtime.option_arguments import as_options, given_options
from tests.runtime.test_cli import Run, assert_error, run  # noqa: F401

# Each option on the command line, and what it means.
LINES: dict[str, dict[str, Any]] = {
    "--max-new-tokens 5 --min-new-tokens 2": {"max_new_tokens": 5, "min_new_tokens": 2},
    "--stop a --stop b --include-stop": {"stop": ["a", "b"], "include_stop_str_in_output": True},
    "--stop-token-ids 5,6 --ignore-eos": {"stop_token_ids": [5, 6], "ignore_eos": True},
    "--top-k 4 --top-p 0.5 --min-p 0.1": {"top_k": 4, "top_p": 0.5, "min_p": 0.1},
    "--typical-p 0.9 --epsilon-cutoff 0.01": {"typical_p": 0.9, "epsilon_cutoff": 0.01},
    "--eta-cutoff 0.01 --temperature 2 --seed 3": {
        "eta_cutoff": 0.01, "temperature": 2, "seed": 3,
    },
    "--repetition-penalty 1.2 --presence-penalty 1": {
        "repetition_penalty": 1.2, "presence_penalty": 1,
    },
    "--frequency-penalty -1 --no-repeat-ngram-size 2": {
        "frequency_penalty": -1, "no_repeat_ngram_size": 2,
    },
    "--logit-bias 5=-3.5 --logit-bias 6=2": {"logit_bias": {5: -3.5, 6: 2}},
    "--bad-words-ids 5,6 --bad-words-ids 7": {"bad_words_ids": [[5, 6], [7]]},
    "--suppress-tokens 5,6 --begin-suppress-tokens 7": {
        "suppress_tokens": [5, 6], "begin_suppress_tokens": [7],
    },
    "--allowed-token-ids 5,6,7": {"allowed_token_ids": [5, 6, 7]},
    "--n 3 --best-of 4": {"n": 3, "best_of": 4},
    "--logprobs 2 --prompt-logprobs 0": {"logprobs": 2, "prompt_logprobs": 0},
    "--regex a+": {"regex": "a+"},
    "--choice yes --choice no": {"choice": ["yes", "no"]},
    "--json-object": {"json_object": True},
    '--json-schema {"type":"null"}': {"json_schema": '{"type":"null"}'},
}  # fmt: skip


def parsed(*arguments: str) -> GenerationOptions | None:
    """What a command line asks for."""
    return as_options(given_options(cli.build_parser().parse_args(["bundle", "text", *arguments])))


@pytest.mark.parametrize(("line", "values"), LINES.items())
def test_options_are_those_of_python(line: str, values: dict[str, Any]) -> None:
    assert parsed(*line.split(" ")) == GenerationOptions(**values)


def test_every_option_can_be_given() -> None:
    """But those that one text has no use for, or that are long lists: `--options` has all."""
    given = {name for values in LINES.values() for name in values}
    missing = set(GenerationOptions.__dataclass_fields__) - given
    assert missing == {"sequence_bias", "processors", "priority", "grammar"}
    assert set(STRUCTURES) - given == {"grammar"}  # it is a file, see below


def test_without_options_nothing_is_asked() -> None:
    assert parsed() is None
    assert parsed("--temperature", "2", "--seed", "1") is None  # the sampler's


def test_files_hold_grammars_schemas_and_options(tmp_path: Path) -> None:
    grammar, schema, options = (tmp_path / name for name in ("g.lark", "s.json", "o.json"))
    grammar.write_text('start: "a"', "utf-8")
    schema.write_text('{"type": "null"}', "utf-8")
    options.write_text(json.dumps({"stop": ["é"], "n": 2, "sequence_bias": [[[1, 2], 3]]}), "utf-8")
    assert parsed("--grammar", str(grammar)) == GenerationOptions(grammar='start: "a"')
    assert parsed("--json-schema", str(schema)) == GenerationOptions(json_schema='{"type": "null"}')
    found = parsed("--options", str(options), "--n", "1")
    assert found == GenerationOptions(stop=["é"], n=1, sequence_bias={(1, 2): 3})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-new-tokens", "x"], "--max-new-tokens takes N, got 'x'"),
        (["--logit-bias", "5"], "--logit-bias takes ID=X, got ['5']"),
        (["--suppress-tokens", "a"], "--suppress-tokens takes IDS, got 'a'"),
        (["--top-p", "2"], "top_p must be a number above 0 and at most 1, got 2"),
        (["--stop", ""], "strings in stop must have 1 to 256 characters"),
        (["--regex", "a", "--json-object"], "regex and json_object are two structures"),
        (["--options", "/nowhere/options.json"], "/nowhere/options.json"),
        (["--logprobs", "1"], "--logprobs and --prompt-logprobs go with --input"),
        (["--n", "0"], "n must be a whole number from 1 to 128, got 0"),
    ],
)
def test_errors_are_one_sentence(
    run: Run,  # noqa: F811
    arguments: list[str],
    words: str,
) -> None:
    assert_error(run("the", *arguments), words)


def test_bad_option_files(run: Run, tmp_path: Path) -> None:  # noqa: F811
    file = tmp_path / "options.json"
    for text, words in (("[1]", "must be a JSON object"), ("{", "is not JSON"), ('{"a": 1}', "'a'")):
        file.write_text(text, "utf-8")
        assert_error(run("the", "--options", str(file)), words)


def test_options_before_and_behind_the_prompt(run: Run, generator: Generator) -> None:  # noqa: F811
    generator.compile("greedy")
    options = GenerationOptions(max_new_tokens=4, repetition_penalty=1.5)
    wanted = generator.generate("the", options=options)
    given = ("--max-new-tokens", "4", "--repetition-penalty", "1.5", "--sampler", "greedy")
    code, out, _ = run("the", *given)
    assert (code, out) == (0, wanted + "\n")
    code, out, _ = run(*given[:4], "the", *given[4:])
    assert (code, out) == (0, wanted + "\n")


def test_several_texts_are_printed_one_after_another(
    run: Run,  # noqa: F811
    generator: Generator,
) -> None:
    generator.compile("greedy")
    options = GenerationOptions(n=3, temperature=3, seed=1, max_new_tokens=5)
    wanted = generator.generate("the", options=options)
    line = "--n 3 --min-p 0 --temperature 3 --seed 1 --max-new-tokens 5"
    code, out, _ = run("the", *line.split())
    assert code == 0
    assert out == "".join(text + "\n" for text in wanted)


def test_lines_of_a_job_have_options_of_their_own(
    run: Run,  # noqa: F811
    generator: Generator,
    tmp_path: Path,
) -> None:
    generator.compile("greedy")
    lines = [
        {"prompt": "the", "id": 1},
        {"prompt": "the", "options": {"max_new_tokens": 2, "logprobs": 1}},
        {"prompt": "the", "options": {"n": "many"}},
        {"prompt": "the", "options": 3},
        {"prompt": "t", "options": None},
    ]
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    common = ["--max-new-tokens", "4", "--sampler", "greedy"]
    code, _, _ = run("--input", str(source), "--output", str(out), *common)
    assert code == 1
    records = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert records[0]["text"] == generator.generate("the", options=GenerationOptions(max_new_tokens=4))
    assert len(records[1]["token_ids"]) <= 2
    assert [len(token["best"]) for token in records[1]["logprobs"]] == [1] * len(
        records[1]["token_ids"]
    )
    assert records[1]["options"] == lines[1]["options"]
    assert "n must be a whole number from 1 to 128, got 'many'" in records[2]["error"]
    assert '"options" must be an object' in records[3]["error"]
    assert records[4]["text"] == generator.generate("t", options=GenerationOptions(max_new_tokens=4))


def test_help_has_groups(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.build_parser().parse_args(["--help"])
    told = capsys.readouterr().out
    for title in ("lengths and ends:", "penalties and biases:", "samples and log-probabilities:"):
        assert title in told
