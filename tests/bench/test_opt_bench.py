"""`opt-bench` and what it measures with."""

from __future__ import annotations

import json
import os
import platform
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench import bundle_speed, opt_bench
from bench.bundle_speed import Settings, measure_bundle
from bench.command import parse_counts, write_json
from bench.measure import Spread, TimedRun, check_room, random_prompts, time_generation
from bench.opt_bench import format_report, main
from bench.system import describe_hardware
from graphs.manifest import read_manifest
from graphs.versions import package_versions

SMALL = ["--prompt-tokens", "16", "--new-tokens", "4", "--trials", "2", "--threads", "1"]
SETTINGS = Settings(prompt_tokens=16, new_tokens=4, batches=(1, 3), trials=2, threads=1)
EXPECTED = Path(__file__).parents[1] / "data" / "toy_expected.json"


# === Measuring ===


def test_spread_of_values():
    assert Spread.of([5.0, 1.0, 2.0]) == Spread(2.0, 1.0, 5.0)
    assert Spread.of(value for value in (4.0, 1.0)) == Spread(2.5, 1.0, 4.0)


@pytest.mark.parametrize("case", [1, 3, 4])
def test_time_generation_gives_the_greedy_tokens(decoder, case):
    expected = json.loads(EXPECTED.read_text(encoding="utf-8"))["cases"][case]
    new_tokens = len(expected["continuation"])
    run = time_generation(decoder, np.array([expected["prompt"]] * 2), new_tokens)
    assert run.token_ids.tolist() == [expected["continuation"]] * 2
    assert len(run.step_seconds) == new_tokens - 1
    assert min(run.prefill_seconds, *run.step_seconds) > 0


def test_one_new_token_takes_no_decode_step(decoder):
    run = time_generation(decoder, np.array([[2, 5]]), 1)
    assert run.step_seconds == ()
    assert run.token_ids.shape == (1, 1)


def test_random_prompts_use_the_whole_vocabulary():
    prompts = random_prompts(np.random.default_rng(0), 7, 50, 20)
    assert prompts.shape == (50, 20)
    assert sorted(set(prompts.ravel().tolist())) == list(range(7))


def test_room_of_the_positions(decoder):
    check_room(decoder.config, 60, 4)
    message = "61 prompt tokens and 4 new ones are more than the model's 64 positions"
    with pytest.raises(ValueError, match=message):
        check_room(decoder.config, 61, 4)


def test_system_description():
    hardware = describe_hardware()
    assert hardware.cpu
    assert hardware.cores == len(os.sched_getaffinity(0))
    pages = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert hardware.memory_bytes == pytest.approx(pages, rel=0.01)
    assert str(hardware).startswith(f"{hardware.cpu}, {hardware.cores} cores, ")
    versions = package_versions(["numpy", "no-such-package"])
    assert versions == {"python": platform.python_version(), "numpy": np.__version__}


# === The report ===


@pytest.fixture
def scripted(monkeypatch):
    """Replaces the timing by given seconds; returns the prompts that were asked for."""
    asked = []

    def install(seconds):
        runs = iter(seconds)

        def fake(decoder, prompts, new_tokens, cache=None):
            asked.append((prompts, new_tokens))
            prefill, *steps = next(runs)
            return TimedRun(prefill, tuple(steps), np.zeros((len(prompts), new_tokens), np.int64))

        monkeypatch.setattr(bundle_speed, "time_generation", fake)
        return asked

    return install


def test_medians_leave_the_warm_up_out(toy_bundle, scripted):
    asked = scripted(
        [
            [0.5],  # the first token after loading
            [9.0, 9.0, 9.0],  # for the memory of serving
            [9.0, 9.0, 9.0],  # batch 1: warm-up
            [0.010, 0.001, 0.003],
            [0.030, 0.002, 0.007],
            [9.0, 9.0, 9.0],  # batch 4: warm-up
            [0.020, 0.004, 0.004],
            [0.020, 0.004, 0.008],
        ]
    )
    settings = Settings(prompt_tokens=8, new_tokens=3, batches=(1, 4), trials=2, threads=1)
    report = measure_bundle(str(toy_bundle), settings)
    one, four = report.batches
    assert one.prefill_ms == Spread(pytest.approx(20.0), pytest.approx(10.0), pytest.approx(30.0))
    assert one.decode_ms_per_token == Spread(pytest.approx(2.5), pytest.approx(1.0), pytest.approx(7.0))
    assert one.prefill_tokens_per_second == pytest.approx(8 / 0.020)
    assert one.decode_tokens_per_second == pytest.approx(1 / 0.0025)
    assert four.prefill_tokens_per_second == pytest.approx(4 * 8 / 0.020)
    assert four.decode_ms_per_token.median == pytest.approx(4.0)
    assert four.decode_tokens_per_second == pytest.approx(4 / 0.004)
    loading = report.loading
    assert loading.to_first_token_seconds == pytest.approx(loading.seconds + 0.5)

    assert [(p.shape, n) for p, n in asked] == [((1, 8), 1)] + [((1, 8), 3)] * 4 + [((4, 8), 3)] * 3
    assert len({prompts.tobytes() for prompts, _ in asked}) == len(asked)  # new ones each time


def test_prompts_depend_on_seed_and_batch_size_only(toy_bundle, scripted):
    def prompts(**changes):
        asked = scripted([[1.0, 1.0]] * 20)
        asked.clear()
        measure_bundle(str(toy_bundle), replace(SETTINGS, **changes))
        return [p.tolist() for p, _ in asked[-3:]]

    first = prompts()
    assert [len(rows) for rows in first] == [3, 3, 3]
    assert prompts(batches=(3,)) == first
    assert prompts(seed=1) != first


def test_report_names_bundle_settings_and_system(toy_bundle):
    report = measure_bundle(str(toy_bundle), SETTINGS)
    values = json.loads(json.dumps(report.to_dict()))
    manifest = read_manifest(toy_bundle)
    assert values["bundle"] == {
        "path": str(toy_bundle),
        "size_bytes": manifest.total_bytes,
        "precision": "fp32",
        "target": "portable",
        "cache_dtype": "float32",
        "parameters": manifest.model.num_parameters,
        "model": manifest.model.to_dict(),
        "source": dict(manifest.source),
    }
    assert values["settings"] == {
        "prompt_tokens": 16,
        "new_tokens": 4,
        "batches": [1, 3],
        "trials": 2,
        "threads": 1,
        "device": "cpu",
        "seed": 0,
        "packed_weights": True,
    }
    assert [batch["batch"] for batch in values["batches"]] == [1, 3]
    for batch in values["batches"]:
        for name in ("prefill_ms", "decode_ms_per_token"):
            assert 0 < batch[name]["minimum"] <= batch[name]["median"] <= batch[name]["maximum"]
    assert 0 < values["load"]["seconds"] < values["load"]["to_first_token_seconds"]
    assert values["peak_memory_bytes"] > 10_000_000
    serving = values["serving_memory"]
    # Keys and values of 2 layers, 32 wide, for 16 + 4 tokens and a spare slot; one row; float32.
    assert serving["cache_bytes"] == 2 * 2 * 32 * 21 * 4
    assert serving["weight_bytes"] == manifest.weights.size
    held = serving["weight_bytes"] + serving["cache_bytes"]
    assert serving["ratio"] == pytest.approx(serving["resident"]["total"] / held)
    own = serving["resident"]["total"] - serving["before"]["total"]
    assert serving["ratio_of_bundle"] == pytest.approx(own / held)
    assert serving["before"]["total"] <= values["peak_memory_bytes"]
    assert values["versions"]["onnxruntime"] == package_versions(["onnxruntime"])["onnxruntime"]
    assert values["hardware"]["cores"] == describe_hardware().cores

    text = format_report(report)
    for fragment in (
        f"{toy_bundle} (fp32, portable, {manifest.total_bytes / 1e6:.1f} MB)",
        "28,800 parameters: 2 layers, 4 heads, hidden 32, inner 64, vocabulary 300, 64 positions",
        "device cpu, threads 1, 16 prompt tokens, 4 new tokens, 2 trials, seed 0",
        f"Peak memory  {report.peak_memory_bytes / 1e6:.0f} MB",
        f"MB in RAM at batch 1 ({report.serving.resident.private / 1e6:.0f} private, ",
        f"{report.serving.ratio:.2f} x weights and cache of 0 MB",
    ):
        assert fragment in text
    assert [line.split()[0] for line in text.splitlines() if line.endswith("tokens/s")] == ["batch"]
    rows = [line for line in text.splitlines() if line.startswith(("    1  ", "    3  "))]
    assert f"{report.batches[1].prefill_ms.median:.2f} (" in rows[1]


# === The command ===


def test_prints_a_table_and_writes_json(toy_bundle, tmp_path, capsys):
    path = tmp_path / "figures.json"
    assert main([str(toy_bundle), *SMALL, "--batch", "1,2", "--json", str(path)]) == 0
    printed = capsys.readouterr()
    assert "decode ms/token" in printed.out
    assert printed.err == ""
    values = json.loads(path.read_text(encoding="utf-8"))
    assert [batch["batch"] for batch in values["batches"]] == [1, 2]
    assert f"{values['batches'][1]['decode_ms_per_token']['median']:.2f} (" in printed.out


@pytest.mark.skipif(os.name != "posix", reason="files as POSIX has them")
def test_json_is_written_in_place(toy_bundle, tmp_path):
    """Through a link, into a file that keeps its mode; a device stays one."""
    path = tmp_path / "figures.json"
    path.write_text("old")
    path.chmod(0o600)
    (tmp_path / "link").symlink_to(path)
    assert main([str(toy_bundle), *SMALL, "--batch", "1", "--json", str(tmp_path / "link")]) == 0
    assert json.loads(path.read_text(encoding="utf-8"))["batches"][0]["batch"] == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (tmp_path / "link").is_symlink()
    assert main([str(toy_bundle), *SMALL, "--batch", "1", "--json", os.devnull]) == 0
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_figures_are_json_whatever_they_are(tmp_path, capsys, monkeypatch):
    """Numbers that are not finite, a folder's name that is no text, a terminal of ASCII."""
    value = {"ratio": float("nan"), "all": [1.5, float("-inf"), {"é": 1}], "bundle": "caf\udce9"}
    expected = {"ratio": None, "all": [1.5, None, {"é": 1}], "bundle": "caf\udce9"}
    write_json(value, str(tmp_path / "figures.json"))
    data = (tmp_path / "figures.json").read_bytes()
    assert "é".encode() in data
    assert json.loads(data.decode("utf-8"), parse_constant=pytest.fail) == expected
    monkeypatch.setattr(type(sys.stdout), "encoding", "ascii", raising=False)
    write_json(value, "-")
    out = capsys.readouterr().out
    assert out.isascii()
    assert json.loads(out) == expected


def test_json_to_standard_output_alone(toy_bundle, capsys):
    assert main([str(toy_bundle), *SMALL, "--batch", "2", "--json", "-"]) == 0
    assert [batch["batch"] for batch in json.loads(capsys.readouterr().out)["batches"]] == [2]


def test_defaults_are_the_documented_ones(monkeypatch):
    seen = []
    monkeypatch.setattr(opt_bench, "measure_bundle", lambda *a: seen.append(a[:2]) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["some_bundle"])
    assert seen == [("some_bundle", Settings(128, 64, (1, 8), 5, None, "auto", 0))]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "128 prompt tokens and 64 new ones are more than the model's 64 positions; lower"),
        (["--batch", "1,x"], "--batch must be whole numbers of at least 1 with commas between, as in"),
        (["--batch", "0"], "as in 1,8; got '0'"),
        (["--batch", ""], "as in 1,8; got ''"),
        (["--new-tokens", "1"], "--new-tokens must be at least 2, got 1"),
        (["--prompt-tokens", "0"], "--prompt-tokens must be at least 1, got 0"),
        (["--trials", "0"], "--trials must be at least 1, got 0"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--seed", "-1"], "--seed must be at least 0, got -1"),
        ([*SMALL, "--device", "tpu"], "device must be one of auto, cpu, cuda and"),
        (["--json", "no/such/folder/x.json"], "--json: there is no folder no/such/folder to write"),
    ],
)
def test_bad_options(toy_bundle, capsys, options, message):
    assert main([str(toy_bundle), *options]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("opt-bench: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1


def test_no_bundle(tmp_path, capsys):
    assert main([str(tmp_path / "nothing")]) == 2
    assert "nothing is no bundle: it does not exist. Make one with: opt-export" in (
        capsys.readouterr().err
    )


def test_interrupted(monkeypatch, capsys):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(opt_bench, "measure_bundle", interrupt)
    assert main(["some_bundle"]) == 130
    assert capsys.readouterr().err == "\nopt-bench: interrupted\n"


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "opt-bench models/opt_125m --prompt-tokens 512 --batch 1" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "batches"), [("1", (1,)), ("1,8", (1, 8)), (" 4 , 2", (4, 2))])
def test_parse_counts(text, batches):
    assert parse_counts("--batch", text) == batches


def test_needs_no_more_than_serving(toy_bundle, repository):
    program = (
        "import sys; from bench.opt_bench import main; "
        f"code = main({[str(toy_bundle), *SMALL, '--batch', '1', '--json', '-']!r}); "
        "heavy = {'exporter', 'tensorflow', 'keras', 'onnx', 'onnx_ir', 'h5py', 'torch', 'tf2onnx'}; "
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr); sys.exit(code)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "[]\n")
    assert json.loads(result.stdout)["batches"][0]["batch"] == 1
