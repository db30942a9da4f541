"""Jobs of `opt-generate`: from lines to records, whatever single lines are."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from runtime import Generator, LogitsError
from runtime.errors import BundleError, CacheMemoryError, GenerationTimeoutError
from runtime.samplers import TopKSampler
from runtime.system import output_file
from tests.runtime.test_cli import Run, assert_error, greedy_text, run  # noqa: F401

PROMPTS = ["the", "", "a quick", "Zoë 😀", "in the inn"]
TOO_LONG = {"prompt": "t" * 60}


def lines(*values: Any) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.split("\n")[:-1]]


# === Good lines ===


def test_json_lines_in_and_out(run: Run, generator: Generator, tmp_path: Path) -> None:  # noqa: F811
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    requests = [{"id": i, "prompt": prompt} for i, prompt in enumerate(PROMPTS)]
    text = lines(*requests[:2]) + "\n  \n" + lines(*requests[2:])
    source.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").rstrip().encode())
    options = ["--input", str(source), "--output", str(target), "--sampler", "greedy"]
    assert run(*options, "--batch-size", "2") == (0, "", "")
    found = records(target.read_text("utf-8"))
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


def test_a_lines_options_go_before_the_commands(run: Run) -> None:  # noqa: F811
    pytest.importorskip("llguidance")
    requests = [
        {"prompt": "the"},
        {"prompt": "the", "options": {"max_new_tokens": 2}},
        {"prompt": "the", "options": {"max_new_tokens": None}},
        {"prompt": "the", "options": {"choice": ["no"], "max_new_tokens": 4}},
        {"prompt": "the", "options": ["stop"]},
        {"prompt": "the", "options": {"suppress_tokens": [300]}},
    ]
    options = ["--input", "-", "--sampler", "greedy", "--max-new-tokens", "5", "--regex", "[a-z]{30}"]
    status, out, _ = run(*options, stdin=lines(*requests))
    first, second, third, fourth, fifth, sixth = records(out)
    assert status == 1
    assert [r["generated_tokens"] for r in (first, second, third)] == [5, 2, 30]
    assert fourth["text"] == "theno"
    assert fifth["error"] == "line 5: \"options\" must be an object of options, got ['stop']"
    assert sixth["error"].startswith("line 6: suppress_tokens must be ids of the model's vocabulary")


def test_json_lines_through_pipes(run: Run, generator: Generator) -> None:  # noqa: F811
    options = ("--input", "-", "--output", "-", "--sampler", "greedy")
    status, out, _ = run(*options, stdin=lines({"prompt": "the"}))
    assert status == 0
    assert json.loads(out)["text"] == greedy_text(generator, "the")


def test_a_seeded_line_does_not_depend_on_the_batch(
    run: Run,  # noqa: F811
    generator: Generator,
) -> None:
    generator.compile(TopKSampler(seed=2))
    wanted = [generator.generate(prompt) for prompt in PROMPTS]
    text = lines(*({"prompt": prompt} for prompt in PROMPTS))
    for size in ("1", "2", "8"):
        _, out, _ = run("--input", "-", "--seed", "2", "--batch-size", size, stdin=text)
        assert [record["text"] for record in records(out)] == wanted


@pytest.mark.parametrize("character", ["\u2028", "\u0085", "\u2029", "\x7f", "\ufeff"])
def test_a_prompt_may_hold_any_character(run: Run, character: str) -> None:  # noqa: F811
    """JSON needs no escape for these, and `ensure_ascii=False` writes none."""
    text = json.dumps({"prompt": f"a{character}b"}, ensure_ascii=False) + "\n"
    status, out, error = run("--input", "-", "--max-length", "9", stdin=text)
    assert (status, error) == (0, "")
    assert json.loads(out)["prompt"] == f"a{character}b"


def test_the_output_can_be_the_next_input(run: Run) -> None:  # noqa: F811
    options = ("--input", "-", "--seed", "1", "--max-length", "40", "--no-stop")
    _, first, _ = run(*options, stdin=lines(*({"prompt": prompt} for prompt in PROMPTS)))
    status, second, error = run(*options, stdin=first)
    assert (status, error) == (0, "")
    timed = re.compile(r"seconds|per_second")

    def untimed(out: str) -> list[dict[str, Any]]:
        return [{n: v for n, v in record.items() if not timed.search(n)} for record in records(out)]

    assert untimed(second) == untimed(first)


def test_a_former_error_is_no_error_once_there_is_a_text(run: Run) -> None:  # noqa: F811
    options = ("--input", "-", "--sampler", "greedy")
    status, first, _ = run(*options, "--max-length", "9", stdin=lines({"prompt": "t" * 20}))
    assert (status, "error" in json.loads(first)) == (1, True)
    status, second, _ = run(*options, stdin=first)
    assert status == 0
    assert "error" not in json.loads(second)
    _, third, _ = run(*options, "--max-length", "9", stdin=second)
    assert set(json.loads(third)) == {"prompt", "error", "line"}  # and no text of the job before


@pytest.mark.parametrize("text", ["", "\n", "\ufeff", "\ufeff\r\n \t\n"])
def test_no_requests(run: Run, tmp_path: Path, text: str) -> None:  # noqa: F811
    target = tmp_path / "out.jsonl"
    target.write_text("old")
    assert run("--input", "-", "--output", str(target), stdin=text) == (0, "", "")
    assert target.read_text("utf-8") == ""


def test_records_are_ascii_where_standard_output_is_not_utf_8(
    run: Run,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(type(sys.stdout), "encoding", "cp1252", raising=False)
    _, out, _ = run("--input", "-", "--max-length", "9", stdin='{"prompt": "Zoë 😀"}\n')
    assert out.isascii()
    assert json.loads(out)["prompt"] == "Zoë 😀"


# === Bad lines ===

BAD = [
    ("{", "is not JSON: Expecting property name enclosed in double quotes at character 2"),
    ("prompt", "is not JSON: Expecting value at character 1"),
    ('{"prompt": "a"} {"prompt": "b"}', "is not JSON: Extra data at character 17"),
    ('"the"', 'must be {"prompt": "..."}, got "the"'),
    ("[]", 'must be {"prompt": "..."}, got []'),
    ('{"text": "a"}', 'must be {"prompt": "..."}, got {"text": "a"}'),
    ('{"prompt": 5}', 'must be {"prompt": "..."}, got {"prompt": 5}'),
    ('{"prompt": "a\\ud800"}', "is not JSON: it holds half a character, a surrogate without its pair"),
    ('{"prompt": "a", "o": ["\\udfff"]}', "is not JSON: it holds half a character"),
    ('{"prompt": "a", "x": 1e999}', "is not JSON: it holds the number 1e999, which is not finite"),
    ('{"prompt": "a", "x": NaN}', "is not JSON: it holds the number NaN, which is not finite"),
    ('{"prompt": "a", "prompt": "b"}', "is not JSON: it gives the name 'prompt' twice"),
    ('{"prompt": "a", "x": ' + "1" * 5000 + "}", "it holds a whole number of thousands of digits"),
    ("[" * 100_000, "is not JSON: it nests too deeply"),
    ('{"prompt": "a\0"}', "is not JSON: Invalid control character at"),
    (json.dumps(TOO_LONG), "a prompt has 61 tokens with the start token, more than max_length=48"),
]


@pytest.mark.parametrize(("line", "message"), BAD, ids=lambda value: value[:30])
def test_a_bad_line_is_a_record(run: Run, line: str, message: str) -> None:  # noqa: F811
    """Its neighbours have their texts, and the place of each stays."""
    text = lines({"prompt": "a"}) + f"\n{line}\n" + lines({"prompt": "b", "id": 7})
    status, out, error = run("--input", "-", stdin=text)
    assert (status, error) == (
        1,
        'opt-generate: 1 of 3 records of standard output tell of an "error"\n',
    )
    first, bad, last = records(out)
    assert (first["prompt"], last["prompt"], last["id"]) == ("a", "b", 7)
    assert "text" in first
    assert "text" in last
    assert bad["line"] == 3
    assert bad["error"].startswith("line 3")
    assert message in bad["error"]
    assert len(bad["error"]) < 500
    assert "text" not in bad


@pytest.mark.parametrize(("line", "message"), BAD, ids=lambda value: value[:30])
def test_a_strict_job_ends_at_a_bad_line(
    run: Run,  # noqa: F811
    tmp_path: Path,
    line: str,
    message: str,
) -> None:
    target = tmp_path / "out.jsonl"
    text = lines({"prompt": "a"}, {"prompt": "c"}) + f"{line}\n" + lines({"prompt": "b"})
    status, _, error = run("--input", "-", "--output", str(target), "--strict", stdin=text)
    assert status == 2
    assert error.startswith("opt-generate: standard input, line 3")
    assert message in error
    assert error.endswith(f". {target} has 2 records; --resume goes on after them\n")
    assert error.count("\n") == 1
    assert [record["prompt"] for record in records(target.read_text("utf-8"))] == ["a", "c"]


def test_an_error_record_keeps_what_the_line_holds(run: Run) -> None:  # noqa: F811
    status, out, _ = run("--input", "-", stdin=lines({"id": 3, "prompt": None, "error": "old"}))
    assert status == 1
    expected = 'line 1 must be {"prompt": "..."}, got {"id": 3, "prompt": null, "error": "old"}'
    assert records(out) == [{"id": 3, "prompt": None, "error": expected, "line": 1}]


def test_a_line_in_another_encoding(run: Run, tmp_path: Path) -> None:  # noqa: F811
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"prompt": "a"}\n{"prompt": "Zo\xeb"}\n{"prompt": "b"}\n')
    status, out, _ = run("--input", str(source))
    assert status == 1
    assert [("text" in record, "error" in record) for record in records(out)] == [
        (True, False),
        (False, True),
        (True, False),
    ]
    told = f"line 2 cannot be read: {source} is not UTF-8: byte 15 of line 2 is 0xeb; it may be Windows"
    assert records(out)[1]["error"].startswith(told)


def test_a_line_that_begins_as_another_encoding_does(run: Run, tmp_path: Path) -> None:  # noqa: F811
    """Only a file's first bytes tell what the whole of it is."""
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"prompt": "a"}\n\xff\xfe{"prompt": "b"}\n')
    told = f"line 2 cannot be read: {source} is not UTF-8: byte 1 of line 2 is 0xff"
    assert records(run("--input", str(source))[1])[1]["error"].startswith(told)


def test_a_file_in_another_encoding(run: Run, tmp_path: Path) -> None:  # noqa: F811
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes('{"prompt": "a"}\n'.encode("utf-16"))
    result = run("--input", str(source), "--output", str(target))
    assert_error(
        result, f"{source} is UTF-16, as its first bytes show, and must be UTF-8; convert it: ic"
    )
    assert not target.exists()


def test_a_message_repeats_only_so_much(run: Run) -> None:  # noqa: F811
    text = lines({"prompt": [["a" * 1000] * 1000]}, {"prompt": "t" * 10**6}, "é" * 10**6)
    status, out, error = run("--input", "-", stdin=text)
    assert status == 1
    assert all(len(record["error"]) < 400 for record in records(out))
    assert len(error) < 100
    _, _, error = run("--input", "-", "--strict", stdin=text)
    assert len(error) < 400


class Fails:
    """Stands for `Generator.generate_results`: fails for any batch that has a certain prompt."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
        self.batches: list[list[str]] = []
        true = Generator.generate_results

        def generate_results(generator: Generator, prompts: Sequence[str], **options: Any) -> Any:
            self.batches.append(list(prompts))
            if "bad" in prompts:
                raise error
            return true(generator, prompts, **options)

        monkeypatch.setattr(Generator, "generate_results", generate_results)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (LogitsError("the model gave NaN"), "the model gave NaN"),
        (GenerationTimeoutError("the call reached its timeout"), "the call reached its timeout"),
        (CacheMemoryError("the KV cache needs 2 GB", 2, 1), "the KV cache needs 2 GB"),
        (MemoryError(), "memory ran out: give the process more (ulimit -v, the container's limit)"),
        (RuntimeError("... std::bad_alloc"), "memory ran out (... std::bad_alloc): give"),
        (OverflowError("too large"), "too large"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_fails_for_one_prompt_costs_no_other_its_text(
    run: Run,  # noqa: F811
    generator: Generator,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    told: str,
) -> None:
    fails = Fails(monkeypatch, error)
    prompts = ["a", "b", "bad", "c", "d"]
    text = lines(*({"prompt": prompt} for prompt in prompts))
    status, out, _ = run("--input", "-", "--sampler", "greedy", "--batch-size", "4", stdin=text)
    assert status == 1
    found = records(out)
    assert [record["prompt"] for record in found] == prompts
    assert [record.get("text") for record in found] == [
        None if prompt == "bad" else greedy_text(generator, prompt) for prompt in prompts
    ]
    assert found[2]["error"].startswith(f"line 3: {told}")
    assert fails.batches == [["a", "b", "bad", "c"], ["a", "b"], ["bad", "c"], ["bad"], ["c"], ["d"]]


@pytest.mark.parametrize("error", [BundleError("the bundle is gone"), OSError(5, "Input/output error")])
def test_what_is_no_prompts_fault_ends_the_job(
    run: Run,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    Fails(monkeypatch, error)
    target = tmp_path / "out.jsonl"
    text = lines({"prompt": "a"}, {"prompt": "bad"}, {"prompt": "b"})
    options = ("--input", "-", "--output", str(target), "--batch-size", "1")
    status, _, told = run(*options, stdin=text)
    assert status == 2
    assert str(error) in told
    assert [record["prompt"] for record in records(target.read_text())] == ["a"]


def test_a_timeout_is_each_batchs_own(
    run: Run,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def generate_results(self: Generator, prompts: Sequence[str], **options: Any) -> Any:
        seen.append((len(prompts), options["timeout"]))
        return self_results(self, prompts, **{**options, "timeout": 1e-9})

    self_results = Generator.generate_results
    monkeypatch.setattr(Generator, "generate_results", generate_results)
    text = lines(*({"prompt": prompt} for prompt in ("a", "b", "c")))
    status, out, _ = run("--input", "-", "--batch-size", "2", "--timeout", "60", stdin=text)
    assert (status, seen) == (0, [(2, 60.0), (1, 60.0)])
    assert [record["finish_reason"] for record in records(out)] == ["timeout"] * 3


# === The output ===


def test_records_are_there_when_their_batch_is_done(
    run: Run,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The old output stays until then."""
    target, seen = tmp_path / "out.jsonl", []
    target.write_text("old", "utf-8")
    true = Generator.generate_results

    def generate_results(self: Generator, prompts: Sequence[str], **options: Any) -> Any:
        text = target.read_text("utf-8")
        seen.append(text if text == "old" else len(records(text)))
        return true(self, prompts, **options)

    monkeypatch.setattr(Generator, "generate_results", generate_results)
    text = lines(*({"prompt": prompt} for prompt in PROMPTS))
    assert run("--input", "-", "--output", str(target), "--batch-size", "2", stdin=text)[0] == 0
    assert seen == ["old", 2, 4]
    assert len(records(target.read_text("utf-8"))) == 5


def test_an_interrupt_keeps_what_is_finished(
    run: Run,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    true = Generator.generate_results

    def interrupted(self: Generator, prompts: Sequence[str], **options: Any) -> Any:
        if prompts == ["b"]:
            raise KeyboardInterrupt
        return true(self, prompts, **options)

    monkeypatch.setattr(Generator, "generate_results", interrupted)
    target = tmp_path / "out.jsonl"
    options = ("--input", "-", "--output", str(target), "--batch-size", "1")
    told = f"\nopt-generate: interrupted; --resume goes on after what {target} has\n"
    assert run(*options, stdin=lines({"prompt": "b"})) == (130, "", told)
    assert list(tmp_path.iterdir()) == []
    assert run(*options, stdin=lines({"prompt": "a"}, {"prompt": "b"})) == (130, "", told)
    assert [record["prompt"] for record in records(target.read_text())] == ["a"]
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_a_full_disk_leaves_whole_records(
    run: Run,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second record does not fit: half of it is written, then there is no room."""
    true, room = os.write, [1000]

    def write(descriptor: int, data: Any) -> int:
        if len(data) < 100:
            return true(descriptor, data)
        if not room[0]:
            raise OSError(28, "No space left on device")
        size = min(len(data), room[0])
        room[0] -= size
        return true(descriptor, data[:size])

    monkeypatch.setattr(output_file.os, "write", write)
    target = tmp_path / "out.jsonl"
    text = lines({"prompt": "a", "x": "x" * 300}, {"prompt": "b", "x": "x" * 300})
    result = run("--input", "-", "--output", str(target), "--max-length", "9", stdin=text)
    assert_error(result, f"[Errno 28] No space left on device: '{target}'")
    assert [record["prompt"] for record in records(target.read_text())] == ["a"]
