"""`bench.gpu` without a card: the whole flow on a toy model, and each part of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from bench import gpu, gpu_plan
from bench.gpu_bundles import KINDS, make_bundle, open_bundle, random_values
from bench.gpu_plan import FPA_INTB, TINY, Budget, Section, plan
from bench.make_checkpoint import write_checkpoint
from bench.traced_graphs import graph_path, load_program, trace_shape, traced_in
from exporter import export_bundle
from graphs.contract import Phase
from graphs.manifest import read_manifest
from graphs.quantization import StoredTensor

REPOSITORY = Path(__file__).parents[2]
STEPS = ["parity_fp32", "parity_fp16", "parity_int4", "decode", "decode_batch", "prefill"]
# Importing any of these, anywhere in a process, is an error in it.
WITHOUT_TENSORFLOW = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tensorflow", "keras", "tf2onnx"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
"""
MAKE_AND_RUN = """
from pathlib import Path
import numpy as np
from bench import gpu, gpu_peers, gpu_section, gpu_table
from bench.gpu_bundles import KINDS, make_bundle, open_bundle
from bench.gpu_plan import TINY
from bench.traced_graphs import traced_in

traced = traced_in(Path("traced"), "tiny", TINY)
for device, kinds in KINDS.items():
    for name, kind in kinds.items():
        make_bundle(kind, TINY, traced, Path("checkpoint"), Path(device, name))
generator, decoder = open_bundle(Path("cpu", "fp32"), KINDS["cpu"]["fp32"], "cpu")
prompt = {"token_ids": np.array([[2, 9, 40, 0, 0, 0]]), "padding_mask": np.array([[1, 1, 1, 0, 0, 0]])}
print(generator.generate(prompt, stop_token_ids=None)["token_ids"].tolist())
print(sorted({"tensorflow", "keras", "tf2onnx", "torch"} & set(sys.modules)))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Traced graphs of the toy model, and a checkpoint of it."""
    folder = tmp_path_factory.mktemp("gpu")
    trace_shape(folder / "traced", "tiny", TINY, list(Phase))
    write_checkpoint(TINY, folder / "checkpoint", deviation=0.3)
    return folder


# === Traced graphs and bundles ===


def test_traced_graphs_hold_no_weights(folder):
    path = graph_path(folder / "traced", "tiny", Phase.PREFILL)
    assert path.stat().st_size < 100_000
    program = load_program(path, TINY)
    assert len(program.weights) == 4 + 12 * 2
    assert program.shape_of("transformer_layer_1/output/kernel") == (256, 64)
    assert [value.name for value in program.graph.inputs][:5] == [
        "input_ids",
        "past_lengths",
        "new_lengths",
        "output_positions",
        "past_key_values.0.key",
    ]
    assert len(program.graph.inputs) == 4 + 2 * 2
    assert not program.graph.initializers.keys() & program.weights.keys()


@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.slow), "fp16"])
def test_a_bundle_from_traced_graphs_is_the_exporters(folder, tmp_path, precision):
    kind = KINDS["cuda"][precision]
    traced = traced_in(folder / "traced", "tiny", TINY)
    make_bundle(kind, TINY, traced, folder / "checkpoint", tmp_path / "ours")
    export_bundle(
        folder / "checkpoint",
        tmp_path / "theirs",
        precision=kind.precision,
        target=kind.target,
        verify="none",
    )
    ours, theirs = read_manifest(tmp_path / "ours"), read_manifest(tmp_path / "theirs")
    assert ours.weights == theirs.weights
    assert ours.cache_dtype == theirs.cache_dtype == {"fp32": "float32", "fp16": "float16"}[precision]
    assert ours.contract_revision == theirs.contract_revision
    for phase in Phase:
        assert _graph(tmp_path / "ours", phase) == _graph(tmp_path / "theirs", phase)


def _graph(bundle, phase):
    """Weights with their places, and operators: other names and their order change with each trace."""
    path = bundle / read_manifest(bundle).graphs[phase].name
    graph = onnx.load(path, load_external_data=False).graph
    weights = {tensor.name: tensor for tensor in graph.initializer if tensor.external_data}
    assert len(weights) > 20
    return weights, Counter(node.op_type for node in graph.node)


def test_the_card_needs_no_tensorflow(folder, tmp_path):
    for name in ("traced", "checkpoint"):
        (tmp_path / name).symlink_to(folder / name)
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW + MAKE_AND_RUN],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    tokens, imported = run.stdout.splitlines()
    assert imported == "[]"
    kind = KINDS["cpu"]["fp32"]
    generator, _ = open_bundle(tmp_path / "cpu" / "fp32", kind, "cpu")
    prompt = {"token_ids": [[2, 9, 40, 0, 0, 0]], "padding_mask": [[1, 1, 1, 0, 0, 0]]}
    prompt = {name: np.array(value) for name, value in prompt.items()}
    wanted = generator.generate(prompt, stop_token_ids=None)["token_ids"].tolist()
    assert json.loads(tokens) == wanted
    assert {path.name for path in (tmp_path / "cuda").iterdir()} == {"fp32", "fp16", "int4"}


def test_graphs_that_do_not_fit_are_refused(folder, tmp_path):
    path = graph_path(folder / "traced", "tiny", Phase.DECODE)
    with pytest.raises(ValueError, match="graph of another model"):
        load_program(path, gpu_plan.GPU_SHAPES["opt_125m"])
    missing = graph_path(tmp_path, "opt_125m", Phase.DECODE)
    with pytest.raises(ValueError, match=f"is missing; make it .* --trace {tmp_path}"):
        load_program(missing, TINY)
    plain = onnx.load(path)
    older = onnx.ModelProto()
    older.CopyFrom(plain)
    del older.graph.input[3]  # the tokens whose logits are wanted
    onnx.save_model(older, str(tmp_path / "older.onnx"))
    with pytest.raises(
        ValueError, match="follows another revision of the graph contract; trace it again"
    ):
        load_program(tmp_path / "older.onnx", TINY)
    del plain.metadata_props[:]
    onnx.save_model(plain, str(tmp_path / "plain.onnx"))
    with pytest.raises(ValueError, match=r"no traced graph: it lacks 'opt_onnx\.model'"):
        load_program(tmp_path / "plain.onnx", TINY)


def test_random_values_fill_a_tensor():
    codes = np.concatenate(list(random_values(StoredTensor("a.int4", "uint8", (5000, 60, 64)))))
    assert (codes.dtype, codes.size, codes.min(), codes.max()) == (np.uint8, 5000 * 60 * 64, 0, 255)
    (scales,) = random_values(StoredTensor("a.int4.scales", "float16", (300, 20)))
    assert scales.dtype == np.float16
    assert 0.004 < scales.min() <= scales.max() < 0.005
    (gamma,) = random_values(StoredTensor("layer_norm/gamma.fp16", "float16", (900,)))
    assert gamma.mean() == pytest.approx(1, abs=0.01)
    (floats,) = random_values(StoredTensor("b/bias", "float32", (900,)))
    assert floats.std() == pytest.approx(0.02, abs=0.002)


# === The command ===


@pytest.fixture(scope="module")
def report(folder, tmp_path_factory):
    """The command on the CPU: its table, and its JSON."""
    pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("report")
    run = subprocess.run(
        [
            *(sys.executable, "-m", "bench.gpu", "--device", "cpu", "--shapes", "tiny"),
            *("--traced", str(folder / "traced")),
            *("--work", str(path), "--json", str(path / "gpu.json")),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert [entry.name for entry in path.iterdir()] == ["gpu.json"]  # nothing else is left
    return run.stdout, json.loads((path / "gpu.json").read_text())


@pytest.mark.slow
@pytest.mark.reference
def test_all_steps_are_measured(report):
    _, values = report
    steps = [(record["section"], record["step"]) for record in values["records"]]
    assert steps == [
        ("rates", "rates"),
        *(("tiny", step) for step in STEPS),
        ("tiny int4", "decode_int4"),
        ("tiny int4, FPA_INTB", "decode_int4"),
    ]
    assert [record for record in values["records"] if "values" not in record] == []
    assert values["options"]["device"] == "cpu"


@pytest.mark.slow
@pytest.mark.reference
def test_parity_with_transformers(report):
    _, values = report
    found = {record["step"]: record["values"] for record in values["records"]}
    assert (found["parity_fp32"]["identical"], found["parity_fp32"]["prompts"]) == (8, 8)
    assert found["parity_fp32"]["distinct_tokens"] > 20
    assert (found["parity_fp16"]["finite"], found["parity_fp16"]["places"]) == (True, 8 * 9)
    assert found["parity_fp16"]["maximum"] < 1e-4  # float32 stands in
    assert found["parity_int4"]["maximum"] > 1e-2
    assert found["decode"]["peer_errors"] == {}
    assert list(found["decode"]["peers"]) == ["eager", "compiled"]
    weights = TINY.num_parameters - TINY.max_sequence_length * TINY.hidden_dim
    assert found["decode"]["weight_bytes"] == 4 * weights
    assert (found["decode_batch"]["batch"], found["prefill"]["tokens"]) == (32, 128)


@pytest.mark.slow
@pytest.mark.reference
def test_the_table_is_printed(report):
    table, _ = report
    cells = [[cell.strip() for cell in line.split("|")] for line in table.splitlines()]
    rows = {(row[1], row[2]): row[3:6] for row in cells if len(row) == 7}
    tokens = rows["tiny", "fp32, greedy tokens as transformers'"]
    assert tokens[0].startswith("8 of 8 prompts, 32 tokens each")
    assert tokens[1:] == ["all", "yes"]
    assert ("tiny", "decode fp16, beside transformers compiled") in rows
    assert "On: card none, on the CPU, torch " in table


@pytest.mark.slow
@pytest.mark.reference
def test_the_compiled_peer_gives_the_same_tokens(folder):
    from bench.gpu_peers import TransformersModel

    model = TransformersModel(folder / "checkpoint", "float32", "cpu")
    for prompt in ([2, 7, 90, 5], [2, 8, 1, 300]):  # the second one in the cache of the first
        eager = model.greedy(prompt, 6)
        assert [token for token, _ in model.compiled(prompt, 6)] == eager
        assert len(model.time_compiled(prompt, 6)) == len(model.time_eager(prompt, 6)) == 5
    model.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "opt_3b"], "--shapes: 'opt_3b' is not among tiny, opt_tiny"),
        (["--minutes", "0"], "--minutes must be above 0, got 0"),
        (["--json", "nowhere/gpu.json"], "--json: there is no folder nowhere"),
    ],
)
def test_wrong_options_are_told(arguments, message, capsys):
    assert gpu.main([*arguments, "--device", "cpu"]) == 2
    assert message in capsys.readouterr().err


# === Sections and their time ===


def test_the_plan_in_the_order_of_its_value():
    parity = ("parity_fp32", "parity_fp16")
    assert plan(gpu_plan.DEFAULT_SHAPES) == [
        Section("rates", "", ("rates",)),
        Section("opt_125m", "opt_125m", (*parity, "parity_int4", "decode")),
        Section("opt_6.7b", "opt_6.7b", ("decode", "decode_batch", "prefill")),
        Section("opt_6.7b int4", "opt_6.7b", ("decode_int4",)),
        Section("opt_6.7b int4, FPA_INTB", "opt_6.7b", ("decode_int4",), FPA_INTB),
        Section("opt_1.3b", "opt_1.3b", (*parity, "decode")),
        Section("opt_2.7b", "opt_2.7b", ("decode",)),
    ]
    assert plan(("tiny",))[1].precisions == {"fp32", "fp16", "int4"}
    assert [kind.traced_phases for kind in KINDS["cuda"].values()] == [
        [Phase.DECODE, Phase.PREFILL],
        [Phase.PREFILL],
        [Phase.PREFILL],
    ]


def test_a_step_takes_longer_for_a_larger_model():
    assert Section("a", "", ("rates",)).step_seconds("rates") == 5.0
    parameters = gpu_plan.GPU_SHAPES["opt_6.7b"].num_parameters
    section = Section("a", "opt_6.7b", ("prefill",))
    assert section.step_seconds("prefill") == 3.0 + 0.5 * parameters / 1e9


def test_budget(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(gpu_plan.time, "monotonic", lambda: now[0])
    budget = Budget(60)
    now[0] += 20
    assert budget.left == 40
    assert budget.refusal(40) is None
    assert budget.refusal(41) == "needs about 41 s of the 40 s left"
    now[0] += 50
    assert budget.refusal(1) == "needs about 1 s of the 0 s left"


def test_what_does_not_fit_is_skipped(tmp_path):
    records = gpu.measure(plan(("tiny",)), "cpu", tmp_path, tmp_path, Budget(10))
    assert {record["skipped"] for record in records if record["step"] == "rates"} == {
        "needs about 20 s of the 10 s left"
    }
    assert [record["step"] for record in records] == ["rates", *STEPS, "decode_int4", "decode_int4"]
    assert all("skipped" in record for record in records)


@pytest.fixture
def fake_process(monkeypatch, tmp_path):
    """Sections whose processes run a script instead."""

    def use(script):
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(gpu.sys, "executable", str(path))

    return use


def test_a_section_that_dies_is_told_and_the_rest_goes_on(fake_process, tmp_path):
    fake_process("echo no kernel image >&2; exit 3")
    sections = [Section("a", "", ("rates",)), Section("b", "", ("rates",))]
    assert gpu.measure(sections, "cpu", tmp_path, tmp_path, Budget(100)) == [
        record
        for name in "ab"
        for record in (
            _record(name, "process", error="exit code 3 / no kernel image"),
            _record(name, "rates", skipped="the process of the section ended before"),
        )
    ]


def test_a_section_is_ended_with_the_time(fake_process, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "START_SECONDS", 0.0)
    monkeypatch.setitem(gpu_plan.STEP_SECONDS, "rates", (0.0, 0.0))
    fake_process("sleep 60")
    sections = [Section("a", "", ("rates",))]
    records = gpu.measure(sections, "cpu", tmp_path, tmp_path, Budget(0.5))
    assert records[0] == _record("a", "process", error="ended when the time was over")


def _record(section, step, **outcome):
    return {"section": section, "shape": "", "step": step, **outcome}
