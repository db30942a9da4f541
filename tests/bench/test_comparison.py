"""The order of questions, and the figures, tables, JSON and picture that come of the answers."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest

from bench.comparison import QUALITY_PLACES, QUALITY_ROWS, compare
from bench.comparison_result import (
    Advantage,
    Case,
    CaseResult,
    Comparison,
    Settings,
    SystemResult,
    Trial,
    choose_reference,
)
from bench.comparison_table import format_comparison
from bench.measure import Spread
from bench.system import Hardware
from bench.workers.process import Generation
from bench.workers.protocol import RefusalError
from bench.workers.systems import SYSTEMS, System, bundle_system
from graphs.contract import ModelConfig

TINY = ModelConfig(
    vocabulary_size=300,
    num_layers=2,
    num_heads=4,
    hidden_dim=32,
    intermediate_dim=64,
    max_sequence_length=64,
)
HARDWARE = Hardware("A CPU", 2, 8_000_000_000, "Linux x86_64")
CASE = Case(1, 5)


class Recorder:
    """Stands in for a worker; answers with scripted seconds."""

    load_seconds = 1.5
    peak_memory_bytes = 7_000_000

    def __init__(self, system, log, seconds=None, wrong=0, factor=None, most_rows=None):
        self.system = system if isinstance(system, System) else System(system, "no.module", "keras")
        self.name = self.system.name
        self.versions = {"python": "3"}
        self.log = log
        self.seconds = iter(seconds) if seconds else None
        self.wrong, self.factor, self.most_rows = wrong, factor, most_rows

    @property
    def gives_logits(self):
        return self.factor is not None

    def generate(self, prompts, new_tokens):
        if self.most_rows is not None and len(prompts) > self.most_rows:
            raise RefusalError(f"{self.most_rows} rows at most")
        self.log.append((self.name, new_tokens, prompts))
        token_ids = np.arange(new_tokens) + prompts.sum(axis=1, keepdims=True)
        token_ids[:, : self.wrong] += 1
        return Generation(next(self.seconds) if self.seconds else float(new_tokens), token_ids)

    def logits(self, token_ids, places):
        self.log.append((self.name, "logits", token_ids))
        values = np.eye(300, dtype=np.float32)[token_ids[:, -places:]]
        return values * np.float32(self.factor)


def run(workers, settings, bandwidth=lambda: 1e9):
    sizes = {worker.name: 10_000_000 for worker in workers}
    return compare(workers, TINY, settings, sizes, bandwidth)


# === The order of questions ===


def test_systems_take_turns_with_the_same_new_prompts():
    log = []
    settings = Settings(batches=(2,), prompt_tokens=(5,), new_tokens=3, trials=2, seed=4)
    run([Recorder("a", log), Recorder("b", log)], settings)
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
    run([Recorder("a", again)], settings)
    assert all(np.array_equal(p, q) for p, q in zip(prompts[:2], [p for *_, p in again], strict=False))


def test_each_batch_size_with_each_prompt_length():
    log = []
    settings = Settings(batches=(1, 3), prompt_tokens=(4, 6), new_tokens=2, trials=1)
    found = run([Recorder("a", log)], settings)
    shapes = [prompts.shape for _, _, prompts in log]
    assert shapes == [(1, 4)] * 4 + [(1, 6)] * 4 + [(3, 4)] * 4 + [(3, 6)] * 4
    assert list(found.systems[0].cases) == [Case(1, 4), Case(1, 6), Case(3, 4), Case(3, 6)]

    # A case's prompts do not depend on the cases before it.
    alone = []
    run([Recorder("a", alone)], Settings(batches=(3,), prompt_tokens=(6,), new_tokens=2, trials=1))
    assert np.array_equal(alone[0][2], log[12][2])


def test_bandwidth_takes_its_turn_in_each_trial():
    log, readings = [], iter([3e9, 1e9, 2e9, 9e9])

    def read():
        log.append("read")
        return next(readings)

    settings = Settings(batches=(1, 2), prompt_tokens=(4,), new_tokens=2, trials=2)
    found = run([Recorder("a", log)], settings, read)
    turns = ["read" if entry == "read" else entry[0] for entry in log]
    assert turns == ["a", "a", "read", "a", "a", "read", "a", "a"] * 2
    assert found.read_bandwidth == Spread(2.5e9, 1e9, 9e9)


def test_logits_are_asked_for_at_the_end():
    log = []
    workers = [
        Recorder("silent", log),
        Recorder("transformers", log, factor=1.0),
        Recorder("other", log, factor=1.5),
    ]
    settings = Settings(prompt_tokens=(20, 5), new_tokens=2, trials=1)
    silent, reference, other = run(workers, settings).systems
    assert [(name, what) for name, what, _ in log[-2:]] == [
        ("transformers", "logits"),
        ("other", "logits"),
    ]
    assert [what for _, what, _ in log].count("logits") == 2  # the reference is asked once
    assert log[-1][2].shape == (QUALITY_ROWS, 20)
    assert silent.logit_error is None
    assert reference.logit_error.mean == reference.logit_error.maximum == 0
    assert other.logit_error.places == QUALITY_ROWS * QUALITY_PLACES
    deviation = np.sqrt(1 / 300 - 1 / 300**2)
    assert other.logit_error.maximum == pytest.approx(0.5 / deviation)
    assert other.logit_error.same_choice == 1.0


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["openvino-int4", "ctranslate2-int8"], None),
        (["openvino-int8", "keras-hub", "optimum-onnx"], "keras-hub"),
        (["keras-hub", "opt-onnx-fp32"], "opt-onnx-fp32"),
        (["keras-hub", "opt-onnx-fp32", "transformers"], "transformers"),
    ],
)
def test_reference(names, expected):
    ours = bundle_system("fp32")
    assert choose_reference({**SYSTEMS, ours.name: ours}[name] for name in names) == expected


# === Figures ===


@pytest.fixture
def comparison():
    log = []
    # Warm-up, then three trials; each is prefill, then the whole of five tokens.
    other = [9.0, 30.0, 0.2, 1.0, 0.4, 1.2, 0.3, 2.3]
    ours = [9.0, 20.0, 0.1, 0.5, 0.1, 0.9, 0.2, 0.4]
    small = [9.0, 20.0, 0.1, 0.3, 0.1, 0.3, 0.1, 0.3]
    workers = [
        Recorder("other", log, other, wrong=1, factor=2.0),
        Recorder(bundle_system("fp32"), log, ours, factor=1.0),
        Recorder(SYSTEMS["openvino-int8"], log, small),
    ]
    return run(workers, Settings(prompt_tokens=(5,), new_tokens=5, trials=3))


def test_figures_leave_the_warm_up_out(comparison):
    other, ours, _ = (result.cases[CASE] for result in comparison.systems)
    assert other.prefill_ms == Spread(*map(pytest.approx, (300.0, 200.0, 400.0)))
    assert other.whole_seconds == Spread(1.2, 1.0, 2.3)
    # (1.0 - 0.2) / 4, (1.2 - 0.4) / 4, (2.3 - 0.3) / 4
    assert other.decode_ms_per_token == Spread(*map(pytest.approx, (200.0, 200.0, 500.0)))
    assert ours.decode_ms_per_token == Spread(*map(pytest.approx, (100.0, 50.0, 200.0)))
    assert (other.first_call_seconds, ours.first_call_seconds) == (30.0, 20.0)
    assert comparison.systems[0].load_seconds == 1.5


def test_systems_are_set_against_this_project_at_their_precision(comparison):
    other, ours, small = comparison.systems
    assert comparison.precisions == ["fp32", "int8"]
    assert comparison.baseline(other, CASE) is ours
    # There is no int8 bundle, so the precision's first system stands in.
    assert comparison.baseline(small, CASE) is small
    assert comparison.ratios(other, CASE) == pytest.approx(
        {"prefill_ms": 3.0, "decode_ms_per_token": 2.0, "whole_seconds": 2.4}
    )
    assert set(comparison.ratios(small, CASE).values()) == {1.0}


def test_bundles_are_set_against_the_fastest_peer_at_their_precision():
    log = []
    # Warm-up, then a trial; each is prefill, then the whole of three tokens.
    workers = [
        Recorder(bundle_system("int8"), log, [9.0, 9.0, 0.1, 0.3]),
        Recorder(SYSTEMS["openvino-int8"], log, [9.0, 9.0, 0.4, 0.7]),
        Recorder(SYSTEMS["ctranslate2-int8"], log, [9.0, 9.0, 0.2, 0.8]),
        Recorder(bundle_system("int4"), log, [9.0, 9.0, 0.1, 0.2]),
        Recorder(SYSTEMS["transformers"], log, [9.0, 9.0, 0.01, 0.02]),
    ]
    found = run(workers, Settings(prompt_tokens=(5,), new_tokens=3, trials=1))
    assert found.advantages(found.systems[0], CASE) == {
        "prefill_ms": Advantage("ctranslate2-int8", pytest.approx(2.0)),
        "decode_ms_per_token": Advantage("openvino-int8", pytest.approx(1.5)),
        "whole_seconds": Advantage("openvino-int8", pytest.approx(0.7 / 0.3)),
    }
    assert found.advantages(found.systems[3], CASE) == {}  # no other system has int4
    values = found.to_dict()["cases"][0]["systems"]
    assert values[0]["fastest_peers"]["prefill_ms"]["peer"] == "ctranslate2-int8"
    assert values[3]["fastest_peers"] == {}
    assert "fastest_peers" not in values[1]
    text = format_comparison(found, HARDWARE)
    cells = ["int8", "opt-onnx-int8", "2.00× ctranslate2-int8"]
    cells += ["1.50× openvino-int8", "2.33× openvino-int8"]
    assert cells in cells_of(text.splitlines())
    assert text.count("Beside the fastest peer at the same precision:") == 1


def test_share_of_the_read_bandwidth(comparison):
    # 10 MB in 200 ms, 100 ms and 50 ms of a machine that reads 1 GB/s.
    shares = [comparison.bandwidth_share(result, CASE) for result in comparison.systems]
    assert shares == pytest.approx([0.05, 0.1, 0.2])


def test_share_of_first_tokens_equal_to_the_reference(comparison):
    other, ours, _ = comparison.systems
    assert comparison.reference == ours.name
    # The first token of each answer is wrong: 2 of the 6 of a trial.
    assert comparison.same_tokens(other, CASE) == pytest.approx(4 / 6)
    assert comparison.same_tokens(ours, CASE) == 1.0


def test_tokens_after_the_first_sixteen_do_not_count():
    def result(token_ids):
        generation = Generation(1.0, np.array([token_ids]))
        return CaseResult(trials=[Trial(Generation(1.0, np.array([[1]])), generation)])

    one, other = result([*range(16), 5, 6]), result([*range(15), 99, 7, 8])
    assert one.same_tokens(other) == pytest.approx(16 / 17)


def test_a_system_that_refuses_a_case():
    log = []
    workers = [
        Recorder("one-row", log, most_rows=1),
        Recorder("any", log),
    ]
    found = run(workers, Settings(batches=(1, 2), prompt_tokens=(5,), new_tokens=2, trials=2))
    case = Case(2, 5)
    assert sum(len(prompts) == 2 for name, _, prompts in log if name == "one-row") == 0
    one, other = found.systems
    assert len(one.cases[CASE].trials) == 2
    assert one.cases[case].refusal == "1 rows at most"
    assert found.baseline(other, case) is other
    assert found.reference == "one-row"
    assert found.same_tokens(other, case) is None
    values = found.to_dict()["cases"][1]["systems"]
    assert values[0] == {"name": "one-row", "precision": "fp32", "refusal": "1 rows at most"}
    text = format_comparison(found, HARDWARE)
    assert "| fp32      | one-row | " in text
    assert "one-row cannot do this: 1 rows at most" in text


def test_systems_of_unknown_precisions_come_last():
    cases = {CASE: CaseResult()}
    systems = [
        SystemResult(bundle_system(precision), {}, 0.0, 0, None, cases)
        for precision in ("fp16", "int4", "fp32")
    ]
    found = Comparison(TINY, Settings(), systems, Spread(1, 1, 1), None)
    assert found.precisions == ["fp32", "int4", "fp16"]


# === Reports ===


def test_json_values(comparison):
    values = json.loads(json.dumps(comparison.to_dict()))
    assert values["model"] == TINY.to_dict()
    assert values["settings"]["new_tokens"] == 5
    assert values["read_bandwidth_bytes_per_second"]["median"] == 1e9
    assert values["reference"] == "opt-onnx-fp32"
    system = values["systems"][0]
    assert (system["name"], system["precision"]) == ("other", "fp32")
    assert (system["peak_memory_bytes"], system["weight_bytes"]) == (7_000_000, 10_000_000)
    assert system["logit_error"]["same_choice"] == 1.0
    assert values["systems"][2]["logit_error"] is None
    (case,) = values["cases"]
    assert (case["batch"], case["prompt_tokens"]) == (1, 5)
    other, ours, _ = case["systems"]
    assert other["baseline"] == "opt-onnx-fp32"
    assert other["ratios"]["whole_seconds"] == pytest.approx(2.4)
    assert set(ours["ratios"].values()) == {1.0}
    assert other["trials"][2] == {"prefill_seconds": 0.3, "whole_seconds": 2.3}
    assert other["same_tokens"] == pytest.approx(4 / 6)


def cells_of(lines):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_tables(comparison):
    text = format_comparison(comparison, HARDWARE)
    lines = text.splitlines()
    assert "5 new tokens, 2 threads, 3 interleaved trials, seed 0. A CPU, 2 cores, 8.0 GB" in lines[0]
    assert lines[2] == "Batch 1, 5 prompt tokens:"
    header, _, other, ours, small = cells_of(lines[4:9])
    assert header == [
        "precision",
        "system",
        "prefill ms",
        "decode ms/token",
        "whole s",
        "of bandwidth",
        "logit error",
        "same tokens",
    ]
    assert other == [
        "fp32",
        "other",
        "300.0 (200.0–400.0), 3.00×",
        "200.00 (200.00–500.00), 2.00×",
        "1.200 (1.000–2.300), 2.40×",
        "5%",
        "0.058 (≤ 17)",
        "66.7%",
    ]
    assert (ours[0], ours[1], ours[-1]) == ("fp32", "opt-onnx-fp32", "100.0%")
    assert (small[0], small[-2], small[-1]) == ("int8", "–", "100.0%")
    assert lines[10] == "Beside the fastest peer at the same precision:"
    header, _, ours = cells_of(lines[12:15])
    assert header == ["precision", "bundle", "prefill", "decode", "whole"]
    assert ours == ["fp32", "opt-onnx-fp32", "3.00× other", "2.00× other", "2.40× other"]
    assert lines[16] == "Systems:"
    header, _, other, *_ = cells_of(lines[18:21])
    assert header == ["system", "weights MB", "load s", "first call s", "peak MB", "same choice"]
    assert other == ["other", "10.0", "1.50", "30.00", "7", "100.0%"]
    assert "1.0 (1.0–1.0) GB/s; each thread takes NumPy's maximum" in text
    assert "first 16 greedy tokens of each generation that equal those of opt-onnx-fp32." in text
    assert f"at {QUALITY_ROWS * 5} places" in text
    assert text.endswith("- openvino-int8: python 3")


def test_picture(comparison, tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    from bench.comparison_plot import plot_comparison

    picture = plot_comparison(comparison, HARDWARE)
    height, width, _ = imread(io.BytesIO(picture)).shape
    assert (width, height) == (1560, round(120 * (2 * 3.2 + 0.8)))
