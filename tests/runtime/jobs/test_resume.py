"""Jobs that go on where they ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime import Generator
from tests.runtime.jobs.test_job_command import TOO_LONG, lines, records
from tests.runtime.test_cli import Run, assert_error, run  # noqa: F401
from tests.signals import heed_signals

REQUESTS = [
    {"id": 1, "prompt": "the", "x": [1.5, None, {"é": 1e22}]},
    {"prompt": "a quick", "id": 2},
    {"id": 3},
    TOO_LONG,
    {"prompt": "Zoë 😀", "id": 5},
    {"prompt": "in the inn", "id": 6},
]
INPUT = "\n" + lines(*REQUESTS[:2]) + "\n{\n" + lines(*REQUESTS[2:])
RECORDS = 7
OPTIONS = ("--sampler", "greedy", "--batch-size", "2")

Done = list[dict[str, Any]]


@pytest.fixture
def job(run: Run, tmp_path: Path) -> Callable[..., tuple[int, str, str]]:  # noqa: F811
    """Runs a job into `out.jsonl`."""

    def job(*options: str, text: str = INPUT) -> tuple[int, str, str]:
        target = str(tmp_path / "out.jsonl")
        return run("--input", "-", "--output", target, *OPTIONS, *options, stdin=text)

    return job


@pytest.fixture
def whole(job: Any, tmp_path: Path) -> bytes:
    """The output of the job, which is there."""
    assert job()[0] == 1
    data = (tmp_path / "out.jsonl").read_bytes()
    assert len(data.splitlines()) == RECORDS
    return data


def untimed(data: bytes) -> Done:
    """Records without what differs from one run to the next."""
    found = records(data.decode())
    return [{n: v for n, v in record.items() if "second" not in n} for record in found]


@pytest.mark.parametrize("kept", range(RECORDS + 1))
def test_a_job_goes_on_after_whole_records(
    job: Any,
    whole: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kept: int,
) -> None:
    target = tmp_path / "out.jsonl"
    before = b"".join(whole.splitlines(keepends=True)[:kept])
    target.write_bytes(before)
    prompts: list[str] = []
    true = Generator.generate_results

    def generate_results(self: Generator, batch: list[str], **options: Any) -> Any:
        prompts.extend(batch)
        return true(self, batch, **options)

    monkeypatch.setattr(Generator, "generate_results", generate_results)
    status, out, error = job("--resume")
    assert (status, out) == (1, "")
    s = "" if kept == 1 else "s"
    told = f"{target} has {kept} record{s}, which are kept\n" if kept else ""
    assert error == f'{told}opt-generate: 3 of 7 records of {target} tell of an "error"\n'
    assert target.read_bytes().startswith(before)
    assert untimed(target.read_bytes()) == untimed(whole)
    done = {record["prompt"] for record in records(before.decode()) if "prompt" in record}
    assert not done & set(prompts)


def test_a_record_that_was_cut_anywhere_is_done_again(job: Any, whole: bytes, tmp_path: Path) -> None:
    """What a kill left of the last one, and the zeros of a machine that lost power."""
    target = tmp_path / "out.jsonl"
    first, second, third, *_ = whole.splitlines(keepends=True)
    cuts = [first + second[:n] for n in (1, 5, 20, 60, len(second) - 1)]
    cuts += [first + second + third[:n] for n in (1, len(third) - 1)]  # of an error record
    cuts += [b"{", first[: len(first) - 1], first + b"\0" * 50]
    for cut in cuts:
        target.write_bytes(cut)
        status, _, error = job("--resume")
        assert status == 1
        assert "one that was cut off is done again" in error
        assert untimed(target.read_bytes()) == untimed(whole)


def test_a_strict_job_goes_on_once_its_line_is_mended(job: Any, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    assert "line 5 is not JSON" in job("--strict")[2]
    mended = INPUT.replace("{\n", lines({"prompt": "mended"}))
    assert "line 6 must be" in job("--strict", "--resume", text=mended)[2]
    assert [record["prompt"] for record in records(target.read_text("utf-8"))] == [
        "the",
        "a quick",
        "mended",
    ]


def test_nothing_to_resume(job: Any, whole: bytes, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    target.unlink()
    assert job("--resume")[0] == 1
    assert untimed(target.read_bytes()) == untimed(whole)


def test_without_resume_an_output_is_replaced(job: Any, whole: bytes, tmp_path: Path) -> None:
    assert job(text=lines({"prompt": "other"})) == (0, "", "")
    assert [record["prompt"] for record in untimed((tmp_path / "out.jsonl").read_bytes())] == ["other"]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (lines({"id": 1, "prompt": "others"}), (), "line 1: it is not from line 1 of standard input"),
        (INPUT.replace('"id": 1', '"id": 2'), (), "line 1: it is not from line 2 of standard input"),
        (INPUT[1:], (), "line 3: it is not from line 4 of standard input"),
        (INPUT.replace("{\n", lines({"prompt": "a"})), (), "line 3: it is not from line 5 of"),
        (INPUT[: INPUT.rindex("{")], (), "line 7: standard input has only 6 lines to do"),
        ("", (), "line 1: standard input has only 0 lines to do"),
        (INPUT, ("--max-length", "40"), "line 1: it was written with --max-length 48"),
        (INPUT, ("--sampler", "beam", "--all-beams"), "line 1: it was written without --all-beams"),
        (INPUT, ("--n", "2"), "line 1: it was written with --n 1"),
        (INPUT, ("--prompt-logprobs", "0"), "line 1: it was written without --prompt-logprobs"),
        (INPUT, ("--max-new-tokens", "3"), "line 1: it was written with --max-new-tokens"),
    ],
    ids=range(11),
)
def test_an_output_of_another_job_is_refused(
    job: Any, whole: bytes, tmp_path: Path, text: str, options: tuple[str, ...], message: str
) -> None:
    assert_error(job("--resume", *options, text=text), message)
    assert (tmp_path / "out.jsonl").read_bytes() == whole


@pytest.mark.parametrize("left", [-3, 60])
def test_a_damaged_record_with_others_behind_it_costs_none_of_them(
    job: Any, whole: bytes, tmp_path: Path, left: int
) -> None:
    """It begins as the one of its line does, and no kill leaves it before others."""
    target = tmp_path / "out.jsonl"
    first, second, *others = whole.splitlines(keepends=True)
    damaged = b"".join([first, second[:left], b"\n", *others])
    target.write_bytes(damaged)
    assert_error(job("--resume"), f"--resume cannot go on with {target}: line 2: it is no record")
    assert target.read_bytes() == damaged


def test_texts_that_other_limits_than_max_length_cut(run: Run, tmp_path: Path) -> None:  # noqa: F811
    """Those of the command and of a line; each with several texts."""
    target = tmp_path / "out.jsonl"
    text = lines({"prompt": "a"}, {"prompt": "a", "options": {"max_new_tokens": 2, "n": None}})
    text += lines({"prompt": "a", "options": 3})
    options = ["--input", "-", "--output", str(target), "--max-length", "30", "--no-stop"]
    options += ["--max-new-tokens", "4", "--n", "2", "--seed", "1"]
    assert run(*options, stdin=text)[0] == 1
    before = target.read_bytes()
    assert [r.get("generated_tokens") for r in records(before.decode())] == [4, 2, None]
    status, _, error = run(*options, "--resume", stdin=text)
    assert (status, target.read_bytes()) == (1, before)
    assert "has 3 records, which are kept" in error


@pytest.mark.parametrize("reason", ["stop", "timeout"])
def test_a_text_that_ended_early_does_not_tell_the_max_length(
    job: Any, whole: bytes, tmp_path: Path, reason: str
) -> None:
    target = tmp_path / "out.jsonl"
    ended = records(whole.decode())
    ended[0] |= {"finish_reason": reason, "generated_tokens": 2}
    before = lines(*ended)
    target.write_text(before, "utf-8")
    assert job("--resume", "--max-length", "48")[0] == 1
    assert target.read_text("utf-8") == before


@pytest.mark.parametrize(
    "data", [b"old", b"old\n", b"[]\n", b'{"id": 1}\n', b"{\n{\n", b"\0\n\0", b"[" * 10**5 + b"\n"]
)
def test_a_file_that_is_no_output_is_refused_and_kept(job: Any, tmp_path: Path, data: bytes) -> None:
    target = tmp_path / "out.jsonl"
    target.write_bytes(data)
    assert_error(job("--resume"), f"--resume cannot go on with {target}: line 1: it is")
    assert target.read_bytes() == data


def test_resume_needs_a_file(run: Run, tmp_path: Path) -> None:  # noqa: F811
    text = lines({"prompt": "a"})
    message = "--resume goes with --output FILE, whose records it keeps"
    assert_error(run("--input", "-", "--resume", stdin=text), message)
    assert_error(run("--input", "-", "--resume", "--output", "-", stdin=text), message)
    result = run("--input", "-", "--resume", "--output", os.devnull, stdin=text)
    assert_error(result, f"--resume reads what --output has, and {os.devnull} is no regular file")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")  # that nobody reads: opening it would wait
        result = run("--input", "-", "--resume", "--output", str(tmp_path / "pipe"), stdin=text)
        assert_error(result, f"and {tmp_path / 'pipe'} is no regular file")


@pytest.mark.skipif(os.name != "posix", reason="kills as POSIX has it")
def test_a_killed_job_goes_on(toy_bundle: Path, tmp_path: Path, repository: Path) -> None:
    """Killed thrice, each time after some more records: at the end each line has one record."""
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(lines(*({"id": i, "prompt": f"the {i}"} for i in range(400))))
    command = [sys.executable, "-m", "runtime.cli", str(toy_bundle), "--input", str(source)]
    command += ["--output", str(target), "--seed", "1", "--threads", "1", "--resume", "--no-stop"]
    for more in (5, 60, 120):
        process = subprocess.Popen(
            command, cwd=repository, stderr=subprocess.DEVNULL, preexec_fn=heed_signals
        )
        before = target.read_bytes().count(b"\n") if target.exists() else 0
        while process.poll() is None:
            if target.exists() and target.read_bytes().count(b"\n") >= before + more:
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]
    assert subprocess.run(command, cwd=repository, check=False, timeout=300).returncode == 0
    found = [json.loads(line) for line in target.read_text("utf-8").splitlines()]
    assert [record["id"] for record in found] == list(range(400))
    assert all("text" in record for record in found)
