"""The comparison: workers, the order of questions, figures, and all systems on one toy model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench import compare as command
from bench.checkpoint_set import find_checkpoints, make_checkpoints
from bench.compare import main, parse_systems, run_systems
from bench.comparison import Comparison, Settings, SystemResult, Trial, compare
from bench.comparison_table import format_comparison
from bench.make_checkpoint import write_checkpoint
from bench.measure import Spread
from bench.system import Hardware, describe_hardware
from bench.workers import process
from bench.workers.padding import with_room
from bench.workers.process import Generation, Worker, WorkerError
from bench.workers.systems import SYSTEMS, System
from graphs.contract import ModelConfig
from graphs.versions import package_versions

TINY = ModelConfig(
    vocabulary_size=300,
    num_layers=2,
    num_heads=4,
    hidden_dim=32,
    intermediate_dim=64,
    max_sequence_length=64,
)
EXPECTED = Path(__file__).parents[1] / "data" / "toy_expected.json"


@pytest.fixture(autouse=True)
def _no_settling(monkeypatch):
    monkeypatch.setattr(process, "SETTLE_SECONDS", 0)


# === Workers ===


def fake(**options):
    return System("fake", "tests.bench.fake_worker", "keras", options)


def test_worker_answers_whatever_it_prints():
    with Worker(fake(), Path("somewhere"), 2) as worker:
        assert worker.versions == package_versions(["numpy"])
        assert worker.load_seconds >= 0
        assert worker.peak_memory_bytes > 1_000_000
        first = worker.generate(np.array([[1, 2, 3], [4, 5, 6]]), 3)
        assert first.token_ids.tolist() == [[6, 7, 8], [15, 16, 17]]
        second = worker.generate(np.array([[7]]), 1)
        assert second.token_ids.tolist() == [[7]]


def test_worker_times_the_generation_alone():
    with Worker(fake(sleep=0.05), Path("somewhere"), 1) as worker:
        assert 0.05 <= worker.generate(np.array([[1]]), 2).seconds < 5


def test_worker_that_cannot_load_tells_why():
    with pytest.raises(WorkerError) as raised:
        Worker(fake(fault="load"), Path("some/where"), 3)
    message = str(raised.value)
    assert message.startswith("fake ended with exit code 1 when loading:\n")
    assert message.endswith("OSError: cannot read some/where with 3 threads")
    assert "Traceback" in message


@pytest.mark.parametrize(
    ("fault", "beginning", "end"),
    [
        ("generate", "fake ended with exit code 1 when generating 4 tokens after 2:\n", "out of room"),
        ("quiet", "fake ended with exit code 3 when generating 4 tokens after 2:\n", "output"),
        ("kill", "fake was killed by signal 9 when generating 4 tokens after 2:\n", "output"),
        ("short", "fake gave tokens of shape (1, 3) when generating 4 tokens after 2", "for 1 rows"),
    ],
)
def test_worker_that_fails_tells_why(fault, beginning, end):
    with Worker(fake(fault=fault), Path("s"), 1) as worker, pytest.raises(WorkerError) as raised:
        worker.generate(np.array([[1, 2]]), 4)
    assert str(raised.value).startswith(beginning)
    assert str(raised.value).endswith(end)


def test_dead_worker_stays_dead():
    with Worker(fake(fault="quiet"), Path("somewhere"), 1) as worker:
        for _ in range(2):
            with pytest.raises(WorkerError, match="exit code 3"):
                worker.generate(np.array([[1]]), 1)


def test_worker_ends_with_its_input():
    with Worker(fake(), Path("somewhere"), 1) as worker:
        running = worker._process
        assert running.poll() is None
    assert running.returncode == 0


def test_worker_sees_no_gpu_and_no_hub(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "kept")
    environment = process._worker_environment(3)
    assert environment["CUDA_VISIBLE_DEVICES"] == "-1"
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["PYTHONPATH"].endswith(":kept")


def test_room_for_new_tokens():
    inputs = with_room([[5, 6], [7, 8]], 3)
    assert inputs["token_ids"].tolist() == [[5, 6, 0, 0, 0], [7, 8, 0, 0, 0]]
    assert inputs["padding_mask"].tolist() == [[1, 1, 0, 0, 0]] * 2


def test_this_project_s_worker_generates_greedily(toy_bundle):
    case = json.loads(EXPECTED.read_text(encoding="utf-8"))["cases"][3]
    with Worker(SYSTEMS["opt-onnx"], toy_bundle, 1) as worker:
        answer = worker.generate(np.array([case["prompt"]] * 2), len(case["continuation"]))
        assert answer.token_ids.tolist() == [case["continuation"]] * 2
        assert set(worker.versions) >= {"python", "onnxruntime", "numpy", "tokenizers"}


# === The order of questions ===


class Recorder:
    """Stands in for a worker; answers with scripted seconds."""

    load_seconds = 1.5
    peak_memory_bytes = 7_000_000

    def __init__(self, name, log, seconds=None, wrong=0):
        self.name = name
        self.versions = {"python": "3"}
        self.log = log
        self.seconds = iter(seconds) if seconds else None
        self.wrong = wrong

    def generate(self, prompts, new_tokens):
        self.log.append((self.name, new_tokens, prompts))
        token_ids = np.arange(new_tokens) + prompts.sum(axis=1, keepdims=True)
        token_ids[:, : self.wrong] += 1
        return Generation(next(self.seconds) if self.seconds else 1.0, token_ids)


def test_systems_take_turns_with_the_same_new_prompts():
    log = []
    settings = Settings(prompt_tokens=5, new_tokens=3, batch=2, trials=2, seed=4)
    compare([Recorder("a", log), Recorder("b", log)], TINY, settings)
    assert [(name, new_tokens) for name, new_tokens, _ in log] == [
        ("a", 1),
        ("a", 3),
        ("b", 1),
        ("b", 3),
    ] * 3
    prompts = [prompts for _, _, prompts in log]
    assert {p.shape for p in prompts} == {(2, 5)}
    for turn in range(0, 12, 4):
        one, other, same_one, same_other = prompts[turn : turn + 4]
        assert np.array_equal(one, same_one)
        assert np.array_equal(other, same_other)
    # Every question to one system is about another prompt, the warm-up's included.
    assert len({p.tobytes() for name, _, p in log if name == "a"}) == 6

    again = []
    compare([Recorder("a", again)], TINY, settings)
    assert all(np.array_equal(p, q) for p, q in zip(prompts[:2], [p for *_, p in again], strict=False))


@pytest.fixture
def comparison():
    log = []
    # Warm-up, then three trials; each is prefill, then the whole of five tokens.
    other = [9.0, 30.0, 0.2, 1.0, 0.4, 1.2, 0.3, 2.3]
    ours = [9.0, 20.0, 0.1, 0.5, 0.1, 0.9, 0.2, 0.4]
    workers = [Recorder("other", log, other, wrong=1), Recorder("opt-onnx", log, ours)]
    return compare(workers, TINY, Settings(prompt_tokens=5, new_tokens=5, trials=3))


def test_figures_leave_the_warm_up_out(comparison):
    other, ours = comparison.systems
    assert comparison.baseline is ours
    assert other.prefill_ms == Spread(*map(pytest.approx, (300.0, 200.0, 400.0)))
    assert other.whole_seconds == Spread(1.2, 1.0, 2.3)
    # (1.0 - 0.2) / 4, (1.2 - 0.4) / 4, (2.3 - 0.3) / 4
    assert other.decode_ms_per_token == Spread(*map(pytest.approx, (200.0, 200.0, 500.0)))
    assert ours.decode_ms_per_token == Spread(*map(pytest.approx, (100.0, 50.0, 200.0)))
    assert (other.first_call_seconds, ours.first_call_seconds) == (30.0, 20.0)
    assert other.load_seconds == 1.5


def test_share_of_equal_tokens(comparison):
    other, ours = comparison.systems
    # The first token of each answer is wrong: 2 of the 6 of a trial.
    assert other.agreement(ours) == pytest.approx(4 / 6)
    assert ours.agreement(ours) == 1.0


def test_json_values(comparison):
    values = json.loads(json.dumps(comparison.to_dict()))
    assert values["model"] == TINY.to_dict()
    assert values["settings"]["new_tokens"] == 5
    assert values["baseline"] == "opt-onnx"
    other, ours = values["systems"]
    assert other["ratios"] == pytest.approx(
        {"prefill_ms": 3.0, "decode_ms_per_token": 2.0, "whole_seconds": 2.4}
    )
    assert set(ours["ratios"].values()) == {1.0}
    assert other["peak_memory_bytes"] == 7_000_000
    assert other["trials"][2] == {"prefill_seconds": 0.3, "whole_seconds": 2.3}


def test_table(comparison):
    text = format_comparison(comparison, Hardware("A CPU", 2, 8_000_000_000, "Linux x86_64"))
    lines = text.splitlines()
    assert "5 prompt tokens, 5 new tokens, 2 threads, 3 interleaved trials, seed 0." in lines[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:6]]
    assert cells[0] == [
        "system",
        "prefill ms",
        "decode ms/token",
        "whole s",
        "first call s",
        "load s",
        "peak MB",
        "same tokens",
    ]
    assert cells[2] == [
        "other",
        "300.0 (200.0–400.0), 3.00×",
        "200.00 (200.00–500.00), 2.00×",
        "1.200 (1.000–2.300), 2.40×",
        "30.00",
        "1.50",
        "7",
        "66.7%",
    ]
    assert cells[3][0] == "opt-onnx"
    assert cells[3][-1] == "100.0%"
    assert "× the median of opt-onnx. A CPU, 2 cores, 8.0 GB, Linux x86_64." in text
    assert text.endswith("- other: python 3\n- opt-onnx: python 3")


def test_first_system_is_the_baseline_without_ours():
    trial = Trial(Generation(1.0, np.array([[1]])), Generation(2.0, np.array([[1, 2]])))
    systems = [SystemResult(name, {}, 0.0, 0.0, None, [trial]) for name in ("x", "y")]
    assert Comparison(TINY, Settings(), systems).baseline.name == "x"


# === Checkpoints ===


def test_missing_checkpoint_says_how_to_make_it(tmp_path):
    with pytest.raises(ValueError, match=r"keras is missing; make it with: python -m bench\.make_ch"):
        find_checkpoints(tmp_path, ["keras"], tmp_path / "bundle")
    with pytest.raises(ValueError, match="--format huggingface --output"):
        find_checkpoints(tmp_path, ["bundle"], tmp_path / "bundle")


def test_given_bundle_needs_no_checkpoint(tmp_path, toy_bundle):
    found = find_checkpoints(tmp_path, ["bundle"], toy_bundle)
    assert found.folders == {"bundle": toy_bundle}
    assert found.config.hidden_dim == 32


def test_checkpoints_of_different_sizes(tmp_path, toy_bundle):
    other = ModelConfig(300, 3, 4, 32, 64, 64)
    write_checkpoint(TINY, tmp_path / "keras", format="keras")
    write_checkpoint(other, tmp_path / "huggingface", format="huggingface")
    with pytest.raises(ValueError, match=r"huggingface and .*keras hold models of different sizes"):
        find_checkpoints(tmp_path, ["keras", "huggingface"], toy_bundle)
    with pytest.raises(ValueError, match=r"toy_bundle and .*huggingface hold models of different"):
        find_checkpoints(tmp_path, ["huggingface", "bundle"], toy_bundle)


@pytest.mark.parametrize(
    ("kinds", "made"),
    [
        (["bundle"], ["huggingface"]),
        (["keras"], ["keras"]),
        (["bundle", "keras", "huggingface"], ["huggingface", "keras"]),
    ],
)
def test_makes_only_what_is_wanted(tmp_path, kinds, made):
    make_checkpoints(TINY, tmp_path, kinds, seed=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == made


# === The command ===


def test_command_on_a_given_bundle(toy_bundle, tmp_path, capsys):
    figures, table = tmp_path / "figures.json", tmp_path / "table.md"
    arguments = ["--checkpoint", str(tmp_path), "--bundle", str(toy_bundle)]
    arguments += ["--systems", "opt-onnx", "--prompt-tokens", "8", "--new-tokens", "4"]
    arguments += ["--trials", "2", "--threads", "1", "--batch", "2"]
    assert main([*arguments, "--json", str(figures), "--markdown", str(table)]) == 0
    values = json.loads(figures.read_text(encoding="utf-8"))
    assert values["hardware"] == str(describe_hardware())
    assert values["settings"] == {
        "prompt_tokens": 8,
        "new_tokens": 4,
        "batch": 2,
        "trials": 2,
        "threads": 1,
        "seed": 0,
    }
    (ours,) = values["systems"]
    assert len(ours["trials"]) == 2
    assert ours["token_agreement"] == 1.0
    assert capsys.readouterr().out == table.read_text(encoding="utf-8")

    assert main([*arguments, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["baseline"] == "opt-onnx"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--systems", "gpt"], "--systems: there is no 'gpt'; choose among opt-onnx, keras-hub,"),
        (["--systems", "keras-hub,keras-hub"], "--systems names a system twice"),
        (["--layers", "2"], "--layers goes with --shape"),
        (["--bundle", "no/bundle"], "--bundle: there is no folder no/bundle"),
        (["--trials", "0"], "--trials must be at least 1, got 0"),
        (["--new-tokens", "1"], "--new-tokens must be at least 2, got 1"),
        (["--markdown", "no/folder/x.md"], "--markdown: there is no folder no/folder to write into"),
        ([], "huggingface is missing; make it with: "),
    ],
)
def test_bad_options(tmp_path, capsys, options, message):
    assert main(["--checkpoint", str(tmp_path), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("compare: ")
    assert message in error


def test_prompt_beyond_the_positions(tmp_path, toy_bundle, capsys):
    message = "60 prompt tokens and 5 new ones are more than the model's 64 positions"
    arguments = ["--checkpoint", str(tmp_path), "--bundle", str(toy_bundle)]
    arguments += ["--systems", "opt-onnx", "--prompt-tokens", "60", "--new-tokens", "5"]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_prompt_beyond_a_shape_s_positions_makes_no_checkpoint(monkeypatch, capsys):
    monkeypatch.setattr(command, "make_checkpoints", lambda *a, **k: pytest.fail("made one"))
    assert main(["--shape", "opt_tiny", "--prompt-tokens", "512"]) == 2
    assert "512 prompt tokens and 64 new ones are more than the model's 512" in (
        capsys.readouterr().err
    )


def test_failing_worker_fails_the_command(tmp_path, toy_bundle, monkeypatch, capsys):
    monkeypatch.setitem(
        SYSTEMS, "fake", System("fake", "tests.bench.fake_worker", "bundle", {"fault": "load"})
    )
    arguments = ["--checkpoint", str(tmp_path), "--bundle", str(toy_bundle)]
    arguments += ["--systems", "opt-onnx,fake", "--prompt-tokens", "4", "--new-tokens", "4"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("compare: fake ended with exit code 1 when loading:\n")
    assert "OSError: cannot read" in error


def test_systems_by_name():
    assert parse_systems("transformers,opt-onnx") == [SYSTEMS["transformers"], SYSTEMS["opt-onnx"]]
    assert SYSTEMS["keras-hub-xla"].options == {"jit_compile": True}


@pytest.mark.slow
@pytest.mark.reference
def test_all_systems_write_the_same_tokens(tmp_path):
    systems = list(SYSTEMS.values())
    kinds = {system.checkpoint for system in systems}
    # OPT's own deviation makes a model this narrow repeat its last token.
    make_checkpoints(TINY, tmp_path, kinds, seed=5, deviation=0.4)
    settings = Settings(prompt_tokens=6, new_tokens=12, batch=2, trials=2, seed=6)
    comparison = run_systems(systems, tmp_path, tmp_path / "bundle", settings)
    assert [system.name for system in comparison.systems] == list(SYSTEMS)
    ours = comparison.baseline
    assert ours.name == "opt-onnx"
    assert ours.token_ids.shape == (2 * 2 * (1 + 12),)
    assert len(set(ours.token_ids.tolist())) > 15
    for system in comparison.systems:
        np.testing.assert_array_equal(system.token_ids, ours.token_ids, err_msg=system.name)
        assert system.agreement(ours) == 1.0
    packages = {system.name: set(system.versions) for system in comparison.systems}
    assert packages["keras-hub"] >= {"keras-hub", "keras", "tensorflow"}
    assert packages["transformers"] >= {"transformers", "torch"}
