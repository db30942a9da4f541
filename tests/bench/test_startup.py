"""Starts of fresh processes: the turns, what is not counted, the command."""

from __future__ import annotations

import json

import pytest

from bench import startup
from bench.startup import Starts, build_parser, format_starts, main, measure_starts
from bench.workers import process
from bench.workers.systems import System

SMALL = ["--prompt-tokens", "4", "--new-tokens", "2", "--trials", "1", "--threads", "1"]


@pytest.fixture(autouse=True)
def _no_settling(monkeypatch):
    for module in (startup, process):
        monkeypatch.setattr(module, "SETTLE_SECONDS", 0)


def test_command(toy_bundle, tmp_path, capsys):
    figures = tmp_path / "figures.json"
    assert main([str(toy_bundle), *SMALL, "--json", str(figures)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:4]]
    assert rows[0] == ["system", "to the last token s", "of it loading s", "peak MB"]
    assert [row[0] for row in rows[2:]] == ["opt-onnx-fp32", f"opt-generate {toy_bundle}"]
    assert rows[2][1].endswith(", 1.00×")
    assert rows[3][2:] == ["–", "–"]
    assert "Medians (minimum–maximum) of 1 fresh processes each, in turn" in lines[5]

    systems = json.loads(figures.read_text(encoding="utf-8"))["systems"]
    ours, command = systems["opt-onnx-fp32"], systems[f"opt-generate {toy_bundle}"]
    assert len(ours["seconds"]) == len(command["seconds"]) == 1  # the first round does not count
    assert 0 < ours["load_seconds"][0] < ours["seconds"][0]
    assert ours["peak_memory_bytes"][0] > 10_000_000
    assert command["seconds"][0] > 0


class FakeWorker:
    """Notes who is started with which prompt, and that it ends before the next."""

    running = 0

    def __init__(self, system, checkpoint, threads, python):
        FakeWorker.running += 1
        assert FakeWorker.running == 1
        self.system, self.python = system, python
        self.load_seconds, self.peak_memory_bytes = 0.25, 5_000_000

    def generate(self, prompt, new_tokens, *, settle):
        assert not settle
        self.log.append((self.system.name, self.python, prompt.tolist(), new_tokens))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        FakeWorker.running -= 1


def test_systems_take_turns_with_the_same_new_prompt(monkeypatch, decoder, tmp_path):
    FakeWorker.log = []
    monkeypatch.setattr(startup, "Worker", FakeWorker)
    systems = [System(name, "module", "huggingface") for name in ("one", "two")]
    contestants = startup.Contestants(systems, {}, {"one": "python-a", "two": "python-b"})
    formats = {"huggingface": tmp_path}
    checkpoints = startup.CheckpointSet(decoder.config, tmp_path, formats, {})
    options = build_parser().parse_args(["b", *SMALL, "--trials", "2"])
    found = measure_starts(contestants, checkpoints, options)
    assert [entry[:2] for entry in FakeWorker.log] == [("one", "python-a"), ("two", "python-b")] * 3
    prompts = [entry[2] for entry in FakeWorker.log]
    assert prompts[0::2] == prompts[1::2]
    assert len({str(prompt) for prompt in prompts}) == 3
    assert all(len(prompt) == 1 and len(prompt[0]) == 4 for prompt in prompts)
    assert {entry[3] for entry in FakeWorker.log} == {2}
    assert found["two"].load_seconds == [0.25] * 2
    assert found["two"].peak_memory_bytes == [5_000_000] * 2


def test_table():
    options = build_parser().parse_args(["b", *SMALL, "--trials", "3"])
    found = {
        "ours": Starts([0.2, 0.4, 0.3], [0.1, 0.3, 0.2], [100_000_000] * 3),
        "other": Starts([0.9, 0.6, 0.3], [0.5] * 3, [200_000_000] * 3),
    }
    lines = format_starts(found, options).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:4]]
    assert rows == [
        ["ours", "0.300 (0.200–0.400), 1.00×", "0.200", "100"],
        ["other", "0.600 (0.300–0.900), 2.00×", "0.500", "200"],
    ]
    assert "opt-generate" not in lines[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trials", "0"], "--trials must be at least 1, got 0"),
        (
            ["--peers", "transformers"],
            "--peers needs --checkpoint, the same model as the peers read it",
        ),
        (["--prompt-tokens", "70"], "70 prompt tokens and 2 new ones are more than the model's 64"),
    ],
)
def test_bad_options(toy_bundle, capsys, options, message):
    assert main([str(toy_bundle), *SMALL, *options]) == 2
    assert message in capsys.readouterr().err


def test_a_command_that_fails(toy_bundle, monkeypatch, capsys):
    monkeypatch.setattr(startup, "COMMAND_MODULE", "runtime.no_such_module")
    assert main([str(toy_bundle), *SMALL]) == 2
    assert "No module named runtime.no_such_module" in capsys.readouterr().err
