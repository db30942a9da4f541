"""Time of a step outside ONNX Runtime: what counts as inside, the samplers, the command."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest

from bench import step_overhead
from bench.step_overhead import (
    SessionClock,
    StepTimes,
    build_parser,
    main,
    measure_overhead,
    session_clock,
)
from graphs.contract import ModelConfig
from runtime.cache import KVCache
from runtime.decoder import StepOutput

SAMPLERS = ["greedy", "top_k, k=5", "top_k, k=50", "top_p, p=0.1", "top_p, p=0.95", "random"]
SMALL = ["--prompt-tokens", "6", "--new-tokens", "5", "--trials", "2", "--threads", "1"]


class ScriptedDecoder:
    """Tells the clock of one second in a session for each append; time itself is scripted too."""

    chunk_tokens = 64
    block_tokens = None
    spare_rows = 0
    keeps_slots = False

    def __init__(self, clock, now, runs_of_a_step=1):
        self.config = ModelConfig(300, 1, 1, 4, 4, 64)
        self.clock, self.now, self.runs = clock, now, runs_of_a_step

    def slot_capacity(self, tokens):
        return tokens

    def new_cache(self, batch, capacity):
        return KVCache(self.config, batch, capacity, "float32")

    def append(self, cache, token_ids, new_lengths, *, first_row=0, **options):
        self.clock.seconds += 1.0
        self.clock.runs += self.runs
        self.now[0] += 1.25
        cache.lengths[first_row : first_row + len(new_lengths)] += new_lengths
        logits = np.random.default_rng(0).standard_normal((cache.batch, 300)).astype(np.float32)
        return StepOutput(logits * 2)


@pytest.fixture
def now(monkeypatch):
    value = [0.0]
    monkeypatch.setattr(step_overhead.time, "perf_counter", lambda: value[0])
    return value


def test_what_is_not_in_the_session_is_outside(now):
    clock = SessionClock()
    options = build_parser().parse_args(["a", *SMALL])
    found = measure_overhead(ScriptedDecoder(clock, now), clock, options)
    assert list(found) == SAMPLERS
    for times in found.values():
        # Two trials of four steps that follow another; the warming trial does not count.
        assert times.whole == [1.25] * 8
        assert times.outside == [0.25] * 8
        assert times.share == 0.2


def test_the_share_is_the_median_over_the_steps():
    times = StepTimes(whole=[1.0, 10.0, 2.0], outside=[0.5, 1.0, 0.5])
    assert times.share == 0.25


@pytest.mark.parametrize("runs", [0, 2])
def test_steps_that_the_clock_does_not_see_are_an_error(now, runs):
    clock = SessionClock()
    options = build_parser().parse_args(["a", *SMALL])
    message = f"a decode step ran {runs} sessions by run_with_iobinding, not one"
    with pytest.raises(RuntimeError, match=message):
        measure_overhead(ScriptedDecoder(clock, now, runs), clock, options)


def test_temperature_gives_the_logits_their_spread(now):
    decoder = ScriptedDecoder(SessionClock(), now)
    temperature = step_overhead.temperature_for(decoder, np.zeros((3, 4), np.int64), 5.0)
    assert temperature == pytest.approx(2 / 5, rel=0.15)
    assert step_overhead.temperature_for(decoder, np.zeros((3, 4), np.int64), 0.0) == 1.0


def test_the_clock_counts_runs_and_leaves_no_trace(decoder):
    original = onnxruntime.InferenceSession.run_with_iobinding
    cache = decoder.new_cache(1, 4)
    with session_clock() as clock:
        for _ in range(3):
            decoder.append(cache, np.array([[5]]), np.array([1], np.int32))
    assert clock.runs == 3
    assert clock.seconds > 0
    assert onnxruntime.InferenceSession.run_with_iobinding is original


def test_command(toy_bundle, tmp_path, capsys):
    path = tmp_path / "figures.json"
    assert main([str(toy_bundle), *SMALL, "--batch", "2", "--json", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:8]]
    assert rows[0] == ["sampler", "step ms", "outside µs", "of the step"]
    assert [row[0] for row in rows[2:]] == SAMPLERS
    assert lines[9].startswith(
        f"Medians of 8 steps (least); {toy_bundle}, batch 2, after 6 prompt tokens"
    )
    values = json.loads(path.read_text(encoding="utf-8"))
    for name in SAMPLERS:
        found = values["samplers"][name]
        assert found["steps"] == 8
        assert 0 < found["outside_seconds"]["median"] < found["step_seconds"]["maximum"]
        assert 0 < found["share"] < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--new-tokens", "2"], "--new-tokens must be at least 3, got 2"),
        (["--spread", "-1"], "--spread must be at least 0, got -1"),
        (["--prompt-tokens", "62"], "62 prompt tokens and 5 new ones are more than the model's 64"),
    ],
)
def test_bad_options(toy_bundle, capsys, options, message):
    assert main([str(toy_bundle), *SMALL, *options]) == 2
    assert message in capsys.readouterr().err
