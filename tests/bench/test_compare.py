"""The comparison's command, and all systems that are installed on one toy model."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from bench import compare as command
from bench import read_bandwidth
from bench.checkpoint_set import make_checkpoints
from bench.compare import main, run_systems
from bench.comparison_result import Case, Settings
from bench.contestants import Contestants
from bench.environments import DEFAULT_FOLDER, ENVIRONMENTS, Environment, find_python
from bench.read_bandwidth import BandwidthMeter
from bench.system import describe_hardware
from bench.weight_bytes import bundle_weight_bytes, folder_bytes
from bench.workers import process
from bench.workers.systems import SYSTEMS, System, bundle_system
from graphs.contract import ModelConfig
from graphs.manifest import read_manifest

TINY = ModelConfig(
    vocabulary_size=304,  # CTranslate2 wants a multiple of eight
    num_layers=2,
    num_heads=4,
    hidden_dim=32,
    intermediate_dim=64,
    max_sequence_length=64,
)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(process, "SETTLE_SECONDS", 0)
    monkeypatch.setattr(command, "BandwidthMeter", lambda threads: BandwidthMeter(threads, 1_000_000))


# === The command ===


def test_command_on_a_given_bundle(toy_bundle, tmp_path, capsys):
    figures, table, picture = (tmp_path / name for name in ("f.json", "t.md", "p.png"))
    arguments = ["--checkpoint", str(tmp_path), "--bundle", str(toy_bundle)]
    arguments += ["--systems", "opt-onnx", "--prompt-tokens", "8,12", "--new-tokens", "20"]
    arguments += ["--trials", "2", "--threads", "1", "--batch", "2"]
    outputs = ["--json", str(figures), "--markdown", str(table)]
    pytest.importorskip("matplotlib")
    assert main([*arguments, *outputs, "--plot", str(picture)]) == 0
    values = json.loads(figures.read_text(encoding="utf-8"))
    assert values["hardware"] == asdict(describe_hardware())
    assert values["read_bandwidth_method"].startswith("each thread takes NumPy's maximum")
    assert values["settings"] == {
        "batches": [2],
        "prompt_tokens": [8, 12],
        "new_tokens": 20,
        "trials": 2,
        "threads": 1,
        "seed": 0,
    }
    (ours,) = values["systems"]
    assert ours["name"] == values["reference"] == "opt-onnx-fp32"
    assert ours["weight_bytes"] == bundle_weight_bytes(toy_bundle)
    assert ours["logit_error"]["maximum"] == 0
    assert [case["prompt_tokens"] for case in values["cases"]] == [8, 12]
    assert len(values["cases"][1]["systems"][0]["trials"]) == 2
    assert capsys.readouterr().out == table.read_text(encoding="utf-8")
    assert picture.read_bytes().startswith(b"\x89PNG")

    assert main([*arguments, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["reference"] == "opt-onnx-fp32"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--systems", "gpt"], "--systems: there is no 'gpt'; choose among opt-onnx, keras-hub,"),
        (["--precision", "fp8"], "--precision: there is no 'fp8'; choose among fp32, int8, int4"),
        (["--layers", "2"], "--layers goes with --shape"),
        (["--bundle", "no/bundle"], "--bundle: there is no folder no/bundle"),
        (["--trials", "0"], "--trials must be at least 1, got 0"),
        (["--new-tokens", "1"], "--new-tokens must be at least 2, got 1"),
        (["--batch", "1,x"], "--batch must be whole numbers of at least 1 with commas between"),
        (["--prompt-tokens", "0"], "--prompt-tokens must be whole numbers of at least 1"),
        (["--markdown", "no/folder/x.md"], "--markdown: there is no folder no/folder to write into"),
        (["--plot", "no/folder/x.png"], "--plot: there is no folder no/folder to write into"),
        (["--systems", "opt-onnx"], "huggingface is missing; make it with: "),
    ],
)
def test_bad_options(tmp_path, capsys, options, message):
    assert main(["--checkpoint", str(tmp_path), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("compare: ")
    assert message in error


def test_picture_without_matplotlib(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["--checkpoint", str(tmp_path), "--plot", str(tmp_path / "x.png")]) == 2
    assert "install it with: pip install matplotlib" in capsys.readouterr().err


def test_system_without_its_environment(tmp_path, monkeypatch, capsys):
    fake = System("fake", "tests.bench.fake_worker", "bundle", environment="toy")
    monkeypatch.setitem(SYSTEMS, "fake", fake)
    monkeypatch.setitem(ENVIRONMENTS, "toy", Environment("toy", "no_such_package", ("toy==1.0",)))
    arguments = ["--checkpoint", str(tmp_path), "--systems", "fake", "--environments", "made"]
    assert main(arguments) == 2
    message = "make it with: python -m bench.environments --only toy --folder made"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("lengths", ["60", "8,60"])
def test_prompt_beyond_the_positions(tmp_path, toy_bundle, capsys, lengths):
    message = "60 prompt tokens and 5 new ones are more than the model's 64 positions"
    arguments = ["--checkpoint", str(tmp_path), "--bundle", str(toy_bundle)]
    arguments += ["--systems", "opt-onnx", "--prompt-tokens", lengths, "--new-tokens", "5"]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_prompt_beyond_a_shape_s_positions_makes_no_checkpoint(monkeypatch, capsys):
    monkeypatch.setattr(command, "make_checkpoints", lambda *a, **k: pytest.fail("made one"))
    arguments = ["--shape", "opt_tiny", "--systems", "opt-onnx", "--prompt-tokens", "512"]
    assert main(arguments) == 2
    assert "512 prompt tokens and 64 new ones are more than the model's 512" in (
        capsys.readouterr().err
    )


def test_failing_worker_fails_the_command(tmp_path, toy_bundle, monkeypatch, capsys):
    fake = System("fake", "tests.bench.fake_worker", "keras", options={"fault": "load"})
    monkeypatch.setitem(SYSTEMS, "fake", fake)
    make_checkpoints(read_manifest(toy_bundle).model, tmp_path, ["keras"], seed=0)
    arguments = ["--checkpoint", str(tmp_path), "--bundle", str(toy_bundle)]
    arguments += ["--systems", "opt-onnx,fake", "--prompt-tokens", "4", "--new-tokens", "4"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("compare: fake ended with exit code 1 when loading:\n")
    assert "OSError: cannot read" in error


# === Bytes ===


def test_weights_of_a_decode_step(toy_bundle):
    # Every weight once, the tied embedding too; the position table is looked up in.
    config = read_manifest(toy_bundle).model
    table = config.max_sequence_length * config.hidden_dim
    assert bundle_weight_bytes(toy_bundle) == 4 * (config.num_parameters - table)


def test_bytes_of_a_folder(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "a").write_bytes(b"123")
    (tmp_path / "inner" / "b").write_bytes(b"12345")
    assert folder_bytes(tmp_path) == 8


def test_bandwidth_is_of_the_whole_array(monkeypatch):
    clock = iter([10.0, 10.5])
    monkeypatch.setattr(read_bandwidth.time, "perf_counter", lambda: next(clock))
    with BandwidthMeter(threads=3, size=4_000_000) as meter:
        assert [len(part) for part in meter._parts] == [333_334, 333_333, 333_333]
        assert meter.measure() == 8_000_000


# === All systems ===


def available_systems():
    """Those whose environment has been made, or whose package this Python has."""
    folder = Path(__file__).parents[2] / DEFAULT_FOLDER
    found = {}
    for system in SYSTEMS.values():
        try:
            found[system.name] = find_python(system.environment, folder)
        except ValueError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.reference
def test_all_systems_write_the_same_tokens(tmp_path):
    ours = bundle_system("fp32")
    pythons = available_systems()
    assert set(pythons) >= {"keras-hub", "keras-hub-xla", "transformers"}
    systems = [ours, *(SYSTEMS[name] for name in pythons)]
    # OPT's own deviation makes a model this narrow repeat its last token.
    make_checkpoints(TINY, tmp_path, ["huggingface", "keras"], seed=5, deviation=0.4)
    settings = Settings(batches=(2,), prompt_tokens=(6,), new_tokens=12, trials=2, seed=6)
    contestants = Contestants(
        systems, {ours.name: tmp_path / "bundle"}, {ours.name: find_python(None, tmp_path), **pythons}
    )
    comparison = run_systems(contestants, tmp_path, settings)
    assert [result.name for result in comparison.systems] == [system.name for system in systems]
    assert comparison.reference == "transformers"
    case = Case(2, 6)
    for result in comparison.systems:
        tokens = np.array([trial.whole.token_ids for trial in result.cases[case].trials])
        assert tokens.shape == (2, 2, 12)
        assert result.logit_error.places == 4 * 6
        if result.system.precision == "fp32":
            # OpenVINO keeps a float16 cache even so.
            least = 0.9 if result.name == "openvino-fp32" else 1.0
            assert comparison.same_tokens(result, case) >= least, result.name
            assert result.logit_error.maximum < 2e-5, result.name
        else:
            assert 0.001 < result.logit_error.mean < 0.5, result.name
    versions = {result.name: set(result.versions) for result in comparison.systems}
    assert versions["keras-hub"] >= {"keras-hub", "keras", "tensorflow"}
    assert versions["transformers"] >= {"transformers", "torch"}
